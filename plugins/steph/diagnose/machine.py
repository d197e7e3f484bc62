"""What exceptions say about the machine: memory, disk, card, driver, bitsandbytes' native code, time.

Wordings: torch 1.x to 2.13 on CUDA, HIP, XPU and MPS, bitsandbytes 0.37 to 0.50, accelerate, NCCL, Triton, safetensors,
pyarrow, glibc, CPython and Windows.
"""

from __future__ import annotations

from steph.base.terms import Cause
from steph.diagnose.table import Rule, Weight, rule

_C, _W = Cause, Weight
_DEVICE = r"(?:CUDA|HIP|XPU|NPU|MLU|MUSA|HPU|MPS|GPU|SYCL|ROCm|Metal)"
_BNB_C_FUNCTION = (
    r"'c(?:get_|quantize|dequantize|gemm|igemm|int8|adam|ademamix|lamb|lars|lion|momentum|rmsprop|adagrad|"
    r"prefetch|fill"
    r"|arange|percentile|extract|transform|histogram|spmm|device|ctest|cutlass|_quantize|_mul)"
)

# fmt: off
MACHINE: tuple[Rule, ...] = (
    # other processes' deaths, seen from a survivor
    rule(
        _C.HOST_OOM, _W.SYMPTOM,
        r"died with <Signals\.SIGKILL", r"CalledProcessError.*exit status (?:137|-9)\b",
        r"process \d+ terminated with signal SIGKILL", r"RemoteTraceback.*SIGKILL",
    ),
    rule(
        _C.OTHER, _W.ECHO,
        r"ChildFailedError", r"CalledProcessError", r"SignalException", r"Process(?:Raised|Exited)Exception",
        r"Connection closed by peer", r"remote process exited", r"NCCL communicator (?:was|has been) aborted",
        r"(?:gloo|pair\.cc|TCPStore|c10d|NCCL|socket).*(?:Connection (?:reset|closed)|Broken pipe)",
        r"\] (?:Connection reset|Broken pipe)", r"BrokenPipeError", r"failed to recv, got 0 bytes",
        r"ncclRemoteError", r"(?:send|recv)(?:Value|Bytes|Vector)? failed",
        r"^(?:SystemExit|KeyboardInterrupt|GeneratorExit)\b",
        r"DataLoader worker .*(?:exited unexpectedly|signal: Terminated)", r"abruptly died during map operation",
    ),
    # memory
    rule(
        _C.HOST_OOM, _W.CERTAIN,
        r"DefaultCPUAllocator", r"enforce fail at (?:CPUAllocator|alloc_cpu)", r"SIGKILL\(-9\)",
        r"\b_?(?:Array)?MemoryError\b", r"ArrowMemoryError", r"std::bad_alloc", r"bad allocation",
        r"Cannot allocate memory", r"\[Errno 12\]", r"os error 12\b", r"メモリを(?:割り当て|確保)", r"os error 1455",
        r"WinError (?:1455|8)\b", r"paging file is too small", r"ページング ?ファイルが小さすぎ",
        r"worker.* killed by signal: (?:Killed|Bus error)", r"out of shared memory\. Please",
        r"insufficient shared memory", r"due to the node running low on memory",
        r"Could not allocate memory (?:for|to) ", r"C10 Out of Memory",
        r"unable to (?:write to|resize|allocate shared memory\(shm\) for|open shared memory object|mmap).*"
        r"(?:/?torch_\d+\w*|/dev/shm/)[^\n]*(?:No space|Cannot allocate)", r"/dev/(?:shm)/.*No space left",
        r"No space left on device.*/dev/(?:shm)/", r"shared memory segment.*No space left",
    ),
    rule(
        _C.CUDA_OOM, _W.CERTAIN,
        rf"{_DEVICE}(?: backend| driver| runtime| device)?(?: (?:has )?ran)? out of memory",
        r"out of memory\. Tried to allocate",
        rf"{_DEVICE}[ \]]*(?:driver |runtime )?(?:error|failure)s?(?: ?\(?\d+\)?)?\s*[:(]?\s*'?(?:out of memory"
        rf"|memory allocation)",
        r"Triton Error \[\w+\]: out of memory", r"(?:CUDA|HIP)_ERROR_OUT_OF_MEMORY", r"cudaErrorMemoryAllocation",
        r"hipErrorOutOfMemory", r"OUT_OF_(?:DEVICE_)?(?:MEMORY|RESOURCES)\b", r"cu\w+ failed: out of memory",
        r"CudaError: out of memory", r"CUBLAS_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)",
        r"(?:CUDNN|CUSOLVER|CUSPARSE|CUFFT|HIPBLAS|ROCBLAS)\w*ALLOC_FAILED",
        r"CUSPARSE_STATUS_INSUFFICIENT_RESOURCES", r"rocblas_status_memory_error", r"would exceed allowed memory",
        r"Unable to find a valid cuDNN algorithm", r"unable to find an engine to execute this computation",
        r"CUDNN_STATUS_NOT_SUPPORTED", r"dispatched on the CPU or the disk",
        r"(?:offload_dir|offload_folder)`? (?:to dispatch|for them)", r"will be offloaded to disk, please pass",
        r"with CPU or disk offload", r"No executable batch size found", r"hit an out-of-memory error",
        r"PT_DEVMEM Allocation failed", r"RESOURCE_EXHAUSTED", r"No available memory for the cache blocks",
        r"Free memory on device.*less than desired", r"kIOGPUCommandBufferCallbackErrorOutOfMemory",
        r"Invalid buffer size:", r"(?:not enough|insufficient) (?:GPU|CUDA|device|video) (?:memory|RAM)",
        r"(?<!\.)OutOfMemoryError", r"(?:cuda|cupy|cu|gpu|torch)[\w.]*\.OutOfMemoryError",
        r"can't fit .* on (?:the |a )?GPU",
    ),
    rule(
        _C.DISK_FULL, _W.CERTAIN,
        r"No space left on device", r"\[Errno (?:28|122)\]", r"os error (?:28|112|122)\b", r"code: (?:28|122)\b",
        r"StorageFull", r"QuotaExceeded", r"Disk quota exceeded", r"not enough (?:free )?(?:disk )?space",
        r"WinError 112\b", r"ENOSPC|EDQUOT", r"database or disk is full", r"空き領域がありません",
        r"ディスク使用量(?:が|制限)",
        r"十分な空き領域", r"PytorchStreamWriter failed", r"inline_container\.cc.*(?:unexpected pos|write failed)",
        r"disk (?:is )?full",
    ),
    # the card and its kernels
    rule(
        _C.CUDA_ASSERT, _W.CERTAIN,
        r"device-side assert", r"cudaErrorAssert", r"hipErrorAssert", r"illegal memory access", r"misaligned address",
        r"an illegal instruction was", r"unspecified launch failure", r"Memory access fault by GPU",
        r"CUDA_ERROR_ILLEGAL_ADDRESS",
    ),
    rule(
        _C.BNB_SETUP, _W.CERTAIN,
        r"CUDA SETUP", r"libbitsandbytes", r"No module named '?bitsandbytes", r"metadata was found for.*bitsandbytes",
        r"bitsandbytes[^\n]*(?:Error named|not (?:available|installed|found|supported))",
        r"bitsandbytes[^\n]*(?:compiled without|CUDA binary|native library|requires?\b|is required|needs)",
        r"requires?[^\n]*bitsandbytes", r"install[^\n]*bitsandbytes", r"module 'bitsandbytes[\w.]*' has no attribute",
        rf"has no attribute {_BNB_C_FUNCTION}",
        r"name '(?:str2optimizer\w+|cuda_setup|COMPILED_WITH_CUDA)' is not defined",
        r"cannot import name '\w+' from '(?:partially initialized module ')?bitsandbytes",
        r"cublasLt ran into an error", r"A GPU is needed for quantization",
        r"required but not available for bitsandbytes", r"supported by the bitsandbytes",
        r"CPU-only version of bitsandbytes", r"Native code method attempted to call", r"No compatible \w+ binary",
        r"Error .+ at line \d+ in file .+", r"BNB_(?:CUDA|ROCM)_VERSION", r"'?triton\.ops'?",
        r"'WindowsPath' is not iterable", r"bitsandbytes: failed to load", r"load_in_[48]bit=True`? requires",
        r"[48]-?bit quantization requires",
    ),
    rule(
        _C.BNB_SETUP, _W.CERTAIN,
        r"^(?:OS|Import|Attribute|Runtime|Type|Name)Error",
        frames=r"bitsandbytes[/\\](?:cextension|cuda_setup|cuda_specs|diagnostics|__init__)",
    ),
    rule(
        _C.CUDA_DRIVER, _W.CERTAIN,
        r"driver version is insufficient", r"NVIDIA driver on your system is too old", r"Found no NVIDIA driver",
        r"no (?:\w+-capable|CUDA|ROCm|HIP|XPU)[ -](?:capable )?(?:device|GPU)s?",
        r"No (?:CUDA|HIP|XPU) GPUs are available", r"no kernel image is available", r"kernel image is invalid",
        r"invalid device function", r"hipErrorNoBinaryForGpu", r"unsupported toolchain",
        r"forward compatibility was attempted", r"CUDA unknown error",
        rf"{_DEVICE}(?: driver)? (?:error|failure \d+):? '?(?:unknown error|initialization error|system not yet"
        rf"|named symbol"
        r"|driver shutting|operation not (?:supported|permitted)|invalid device|API call is not supported|"
        r"device not ready)",
        r"busy or unavailable", r"invalid device ordinal", r"CUDA driver initialization failed",
        r"uncorrectable (?:NVLink|ECC)", r"ECC error", r"hardware stack error", r"fallen off the bus", r"GPU is lost",
        r"Driver/library version mismatch",
        r"NVML(?:Error|Library|_| ).*(?:not found|not loaded|mismatch|uninitialized|unknown|lost|fail)",
        r"initialize NVML", r"not compiled with (?:CUDA|XPU|ROCm)", r"torch\.cuda\.is_available\(\) is False",
        r"libcuda\.so", r"libnvidia-ml", r"nvcuda\.dll", r"cudaGetDeviceCount", r"CUDNN_STATUS_VERSION_MISMATCH",
        r"CUDA_ERROR_(?:NO_DEVICE|UNKNOWN|SYSTEM|NOT_INIT)", r"Driver Error|driver is not (?:loaded|installed)",
        r"0 active drivers", r"DeferredCudaCallError", r"requires a GPU\b", r"only be used on CUDA devices",
        r"CUDA is not available", r"CUDA-capable device\(s\) is/are",
    ),
    rule(
        _C.NAN_LOSS, _W.CERTAIN,
        r"\bloss\b.{0,30}\b(?:nan|not finite|non-?finite)\b", r"\b(?:nan|non-?finite|infinite)\b.{0,20}\bloss\b",
        r"returned nan values in its", r"loss scale (?:already at minimum|reached)", r"Minimum loss scale",
        r"probability tensor contains", r"gradients?(?: norm)?.{0,30}\b(?:is|are) (?:nan|non-?finite)\b",
        r"NaN or Inf found",
    ),
    # time
    rule(
        _C.TIMEOUT, _W.CERTAIN,
        r"collective operation timeout", r"Timed out (?:initializing|waiting|after \d+ seconds waiting)",
        r"DistStoreError", r"wait timeout after", r"timed out in monitoredBarrier",
        r"(?:client|server) socket has timed out", r"Socket Timeout", r"DataLoader timed out", r"TimeoutExpired",
        r"Failed: Timeout", r"the launch timed out", r"filelock.*Timeout", r"NCCL.*(?:timeout|timed out)",
        r"Watchdog",
    ),
)
# fmt: on
