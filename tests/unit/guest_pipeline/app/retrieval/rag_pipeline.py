"""Question in, answer out: with retrieval in the real thing, here without."""

from app.core.rag_config import RAGConfig
from app.llm.hf_llm import HFLLMConfig, HFLoRALLM

TEMPLATE = """あなたは日本の法律の専門家です。次の問題に a, b, c, d のいずれか1文字で答えてください。

問題: {question}

選択肢:
{choices}

回答:"""


class RAGPipeline:
    def __init__(self, config: RAGConfig) -> None:
        self.config = config
        if config.llm_backend != "hf":
            raise ValueError(f"unknown LLM backend: {config.llm_backend}")
        self.llm = HFLoRALLM(HFLLMConfig(config.hf_model_name or "", config.hf_lora_path, config.hf_load_in_4bit))

    def query(self, question: str, choices: str) -> str:
        try:
            return self.llm.invoke(TEMPLATE.format(question=question, choices=choices))
        except Exception as e:
            print(f"Error during LLM invocation: {e}")
            return f"Error: {e}"
