"""What exceptions say about the software around the pipeline: the Hub, the installation, the libraries' API, the data.

Wordings: huggingface_hub 0 to 2 over requests, httpx and httpx2, transformers 4 and 5, peft, trl, accelerate, datasets,
pyarrow, tokenizers, torch's data loader and CPython.
"""

from __future__ import annotations

from steph.base.terms import Cause
from steph.diagnose.table import Rule, Weight, rule

_C, _W = Cause, Weight
_HERE = r"localhost|127\.0\.0\.1|0\.0\.0\.0|'::1'|\[::1\]|:11434|wandb"
_DATA_FILE = r"\.(?:jsonl|json|csv|tsv|parquet|arrow|txt|xml|ya?ml)(?:\.gz)?\b"
_MODEL_FILE = (
    r"(?:\.(?:safetensors|bin|pt|pth|gguf|ckpt|msgpack)\b|(?:adapter_|generation_|tokenizer_|special_tokens_|"
    r"trainer_)?"
    r"(?:config|tokenizer|vocab|tokens_map|state|index)\.json|merges\.txt|tokenizer\.model|vocab\.txt|models--[\w.-])"
)

# fmt: off
SOFTWARE: tuple[Rule, ...] = (
    # the Hub; "private or gated" is advice in the not-found messages
    rule(
        _C.HUB_GATED, _W.CERTAIN,
        r"GatedRepoError", r"(?<!private or )gated (?:repo|dataset|model)",
        r"Access to (?:model|dataset) \S+ is restricted", r"awaiting a review", r"\bis gated\b",
        r"not in the authorized list", r"(?:Local)?Token(?:NotFoundError| is required)",
        r"Invalid (?:user )?(?:token|credentials|username or password)", r"fine-grained token",
        r"\b403 (?:Client|Forbidden)", r"status code 403\b|'403 ", r"DisabledRepoError",
        r"Access to this resource is disabled", r"accept the (?:condition|licen|term)",
    ),
    rule(
        _C.HUB_NOT_FOUND, _W.CERTAIN,
        r"(?:Repository|Revision|Bucket)NotFoundError",
        r"(?<!Local)EntryNotFoundError: (?!.*(?:connection|outgoing))",
        r"(?:Repository|Revision|Entry) Not Found for url", r"(?:'|\b)404 (?:Client Error|Not Found)",
    ),
    rule(
        _C.HUB_UNREACHABLE, _W.CERTAIN,
        r"LocalEntryNotFoundError", r"IncompleteSnapshotError", r"offline ?mode ?is ?enabled",
        r"outgoing traffic has been disabled",
        r"(?:couldn't|could not|can't|cannot) (?:connect to|reach) '?(?:http|the )", r"Couldn't reach '?\S+",
        r"check your (?:internet )?connection", r"Connection error, and we cannot find",
        r"(?:'|\b)429 (?:Client|Too)", r"Too Many Requests",
        r"\b5\d\d (?:Server Error|Bad Gateway|Service|Gateway|Internal)", r"'5\d\d [A-Z]",
        r"Consistency check failed", r"(?:CAS|Xet)\w* (?:service |Client )?error", r"XetDownloadError",
        r"CERTIFICATE_VERIFY_FAILED", r"\bSSL(?:Error|:|V3)", r"ssl\.SSL\w*Error",
        r"while downloading using `hf_transfer`",
    ),
    rule(
        _C.HUB_UNREACHABLE, _W.CERTAIN,
        rf"^(?!.*(?:{_HERE})).*(?:Max retries exceeded|NameResolutionError|Failed to (?:resolve|establish a "
        rf"new)|getaddrinfo failed"
        r"|(?:Temporary failure in|failure in) name resolution|Name or service not known|nodename nor servname|"
        r"No address associated"
        r"|Read timed out|Connection timed out|The (?:read|handshake|connect|write) operation timed out|"
        r"Connect(?:ion)? ?Timeout"
        r"|Read ?Timeout|Network is unreachable|No route to host|ProxyError|IncompleteRead|ChunkedEncodingError"
        r"|RemoteDisconnected"
        r"|RemoteProtocolError|Server disconnected|peer closed connection|Could not resolve host|"
        r"名前またはサービスが不明"
        r"|requests\.exceptions\.(?!JSONDecode|HTTPError)\w+|http(?:x|"
        r"core)2?\.(?:_exceptions\.)?(?!HTTPStatus)\w*(?:Error|Timeout))",
    ),
    rule(
        _C.HUB_UNREACHABLE, _W.LIKELY,
        r"specific connection error when",
        rf"^(?!.*(?:{_HERE})).*(?:Connection(?:Reset|Refused|Aborted)Error|\bConnectionError|Connection "
        rf"(?:refused|reset by peer))",
    ),
    rule(
        _C.HUB_NOT_FOUND, _W.CERTAIN,
        r"not a valid model identifier", r"not a local folder", r"does not appear to have (?:a file|files|any)",
        r"HFValidationError", r"no file named .* found in", r"Repo id must", r"not a valid git identifier",
        r"Dataset(?:NotFoundError| '[^']*' doesn't exist)",
        rf"Couldn't find (?!.*{_DATA_FILE})(?:a |any )?(?:dataset|module|data file)", r"Incorrect path_or_model_id",
        r"Can't find '?adapter_", r"Can't find a valid checkpoint", r"No valid checkpoint found",
        r"Can't find (?:weights|config)", r"does not exist on the Hub",
        rf"No such file or directory:? .*(?:{_MODEL_FILE})", r"Should have a `model_type` key",
        r"not the path to a directory containing", rf"{_MODEL_FILE}.*No such file or directory",
        r"is neither a valid local path nor a model",
    ),
    rule(
        _C.HUB_NOT_FOUND, _W.LIKELY,
        r"Can't load (?:the )?(?:tokenizer|config|model|processor|feature|image|weights)",
        r"Unable to load (?:vocabulary|weights)",
    ),
    rule(_C.HUB_GATED, _W.LIKELY, r"(?:'|\b)401 (?:Client|Unauthorized)", r"Unauthorized for url"),
    # the installation
    rule(
        _C.IMPORT_ERROR, _W.CERTAIN,
        r"ModuleNotFoundError", r"No module named", r"cannot import name", r"DLL load failed", r"undefined symbol",
        r"symbol \S+ version .* not defined", r"version [`'](?:GLIBC|GLIBCXX|CXXABI|GOMP)\S*' not found",
        r"cannot open shared object file", r"PackageNotFoundError", r"No package metadata",
        r"DistributionNotFound|VersionConflict", r"most likely due to a circular import", r"WinError 12[67]\b",
        r"required for a normal functioning of this module", r"numpy\.dtype size changed", r"compiled using NumPy 1",
        r"multiarray failed to import", r"operator torchvision::\w+ does not exist",
        r"packages that were not found in your environment", r"(?:seems|is) (?:to be )?not (?:be )?installed",
        r"but it was not found in your environment", r"run `?pip install", r"different CUDA (?:major )?versions",
        r"name '(?:init_empty_weights|ParallelismConfig|DeviceMesh|DistributedConfig|flash_attn\w*|bnb|torch|"
        r"nn)' is not defined",
        r"failed to map segment from shared object", r"wrong ELF class|invalid ELF header",
    ),
    rule(
        _C.IMPORT_ERROR, _W.CERTAIN,
        r"^(?:Name|Syntax|Attribute)Error",
        frames=r"(?s)(?:site|dist)-packages(?!.*(?:site|dist)-packages.*\bin (?!<module>)).*, in <module>",
    ),
    rule(_C.IMPORT_ERROR, _W.LIKELY, r"^ImportError", r"Failed to import"),
    rule(_C.IMPORT_ERROR, _W.LIKELY, r"^NameError", frames=r"(?:site|dist)-packages"),
    # the libraries' API and settings that they refuse
    rule(
        _C.API_DRIFT, _W.CERTAIN,
        r"unexpected keyword argument", r"got multiple values for (?:keyword )?argument",
        r"takes \d+ positional arguments? but", r"takes from \d+ to \d+ positional",
        r"missing \d+ required (?:positional|keyword)", r"unrecognized arguments",
        r"module '[\w.]+' has no attribute", r"module [\w.]+ has no attribute", r"type object '\w+' has no attribute",
        r"'(?=\w*(?-i:[A-Z]))(?!NoneType)\w+' object has no attribute", r"can't set attribute|has no setter",
        r"not used by the HfArgumentParser", r"(?:is|was|has been|have been|are|were) (?:deprecated|removed)",
        r"(?:no longer|not) supported (?:in|by|since|from|as of|with) (?:this version|transformers|peft|trl|v?\d)",
        r"no longer supported", r"^\w*(?:Deprecation|Future)Warning", r"does not recognize this architecture",
        r"Unrecognized configuration class", r"Unrecognized model", r"Tokenizer class \w+ does not exist",
        r"specify `target_modules`", r"^ValueError: Target modules? ", r"untagged enum", r"as a kwarg when passing",
        r"model_kwargs` are not used", r"\.to`? is not supported for", r"Calling `\w+\(\)` is not supported",
        r"Unknown quantization type", r"trust_remote_code", r"is not a valid \w+, please select one of",
        r"require users to upgrade torch", r"Weights only load failed",
        r"(?:please |you should )?(?:upgrade|downgrade|update)\b.*\bto\b", r"version is too old",
        r"requires? (?:transformers|torch|peft|accelerate|trl|PyTorch) ?[><=]", r"argument 'tokenizer'",
        r"missing required keys", r"not a supported .*(?:argument|option|backend|optimizer)",
        r"unsupported optimizer", r"Could not find the transformer layer class",
        r"setup doesn't support bf16", r"does not support .*(?:attention|sdpa|flash)", r"is not a valid auto class",
    ),
    rule(
        _C.API_DRIFT, _W.CERTAIN,
        r"^KeyError", frames=r"configuration_auto|CONFIG_MAPPING|auto_factory|PEFT_TYPE_TO|ACT2",
    ),
    rule(
        _C.API_DRIFT, _W.CERTAIN,
        r"^KeyError: '(?:qwen|llama|mistral|mixtral|gemma|phi|gpt_|deepseek|falcon|olmo|glm|smollm|granite|"
        r"cohere|internlm)\w*'$",
    ),
    rule(
        _C.API_DRIFT, _W.LIKELY,
        r"^AttributeError: '(?!NoneType)\w+' object has no", frames=r"(?:site|dist)-packages",
    ),
    # the script itself
    rule(_C.OTHER, _W.CERTAIN, r"^EOFError: EOF when reading a line", r"^(?:Syntax|Indentation|Tab)Error: "),
    # the data
    rule(
        _C.BAD_DATA, _W.CERTAIN,
        r"JSONDecodeError", r"Arrow(?:Invalid|TypeError|KeyError|NotImplementedError)", r"ParserError",
        r"Unicode(?:Decode)Error", r"JSON parse error", r"Expecting (?:value|property name|',')",
        r"(?:attempting|Asking) to pad", r"padding token", r"pad_token", r"Cannot handle batch sizes > 1",
        r"Unable to create tensor", r"expected sequence of length", r"stack expects each tensor", r"num_samples=0",
        r"num_samples should be a positive", r"match target batch_size", r"but got length",
        r"include input_ids, but you provided", r"Dataset(?:Generation)(?:Cast)?Error", r"CastError",
        r"Couldn't cast", r"Could not cast", r"No columns in the dataset match", r"TextEncodeInput must be",
        r"text input must be of type", r"(?:Sequence)?inputs? must be str", rf"Couldn't find .*{_DATA_FILE}",
        r"SchemaInferenceError", r"EmptyDatasetError", r"DataFilesNotFoundError", r"EmptyDataError", r"Unknown split",
        r"corresponds to no data", r"(?:training|evaluation) requires an? (?:train|eval)_dataset",
        r"did not return a loss from the inputs", r"batch received was empty", r"not in the dataset",
        r"Column .* (?:not|doesn't|does not)", r"Conversation roles must alternate", r"out of bounds for size 0",
        r"index out of range in self", r"Target \d+ is out of bounds",
        r"Sequence length must be|longer than the maximum",
        r"(?:header|metadata)(?:TooLarge|TooSmall|IncompleteBuffer)|InvalidHeader|IncompleteMetadata|"
        r"MetadataIncomplete",
        r"Error while deserializing", r"PytorchStreamReader failed", r"invalid load key", r"Unable to find '",
        r"UnpicklingError", r"contains? no (?:rows|data|examples|samples)",
        r"(?:data ?set|file|split|data) (?:is|was) empty", r"empty (?:data ?set|file)",
        r"doesn't contain any data files", r"BadZipFile|BadGzipFile|Not a gzipped file",
        r"different (?:number of )?lengths?",
        r"(?:length|number of rows)s? (?:mismatch|must match|do(?:es)? not match)",
        r"All arrays must be of the same length", r"\bis not a valid JSON", r"chat_template is not set",
        r"Cannot use chat template functions", r"roles? .*(?:not supported|must)", r"TemplateError",
        rf"No such file or directory:? .*(?:{_DATA_FILE}|\bdata)",
        rf"{_DATA_FILE}.*(?:No such file|not found|does not exist|missing)",
    ),
    rule(
        _C.BAD_DATA, _W.CERTAIN,
        r"^Error: (?!.*(?:model|adapter|argument)).*(?:data|file|row|record|column|JSON|key|データ|ファイル|設問)",
    ),
    rule(
        _C.BAD_DATA, _W.LIKELY,
        r"^KeyError: (?!'?(?-i:[A-Z][A-Z_]{3,})'?$)(?!.*(?:\.weight|lora_|base_model|metric_for_best))",
    ),
    rule(
        _C.BAD_DATA, _W.LIKELY,
        r"^FileNotFoundError(?!.*\.(?:py|so|sh)\b)", r"^EOFError", r"string indices must be integers",
    ),
    # what is left of the clock
    rule(_C.TIMEOUT, _W.LIKELY, r"^(?:\w+\.)*Timeout(?:Error)?\b"),
)
# fmt: on
