"""A stand-in for a notebook's export: no options, its settings and folders are in its text."""

# In[1]:

import runpy
import sys

# In[2]:


SETTINGS = {"batch-size": 4, "gradient-accumulation-steps": 2, "learning-rate": 1e-3, "num-epochs": 2, "lora-r": 8,
            "lora-alpha": 16, "lora-dropout": 0.05, "max-seq-length": 512, "logging-steps": 1}  # fmt: skip
sys.argv = ["scripts/train_qwen_law_ft.py", "--model-name", "Qwen/Qwen1.5-1.8B-Chat", "--do-train", "--train-file",
            "results/finetune/ft_direct_full_norag.jsonl", "--output-dir", "outputs"]  # fmt: skip
sys.argv += [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
runpy.run_path(sys.argv[0], run_name="__main__")
