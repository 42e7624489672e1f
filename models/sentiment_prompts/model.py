"""The model of fine_tune_toy_model, as it was when the run was saved; load_run executes this file."""

import torch.nn.functional as F
from peft.mapping import inject_adapter_in_model
from peft.tuners.lora.config import LoraConfig
from shared_utils.finetuning import TextClassifier
from torch import nn


def add_lora(encoder, rank):  # adapters on every linear layer that the vectors of sentences pass through
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if "pooler" not in name]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), encoder)


class ContrastiveClassifier(TextClassifier):
    """An encoder whose vectors have length 1, with LoRA if `rank` is given: a batch of sentences -> logits."""

    def __init__(self, pretrained, n_classes, rank=0):
        super().__init__(pretrained, n_classes, dropout=0.0)
        self.encoder.get_input_embeddings().requires_grad_(False)  # forty sentences hold few of the words
        if rank:
            add_lora(self.encoder, rank)

    def embed(self, inputs):
        return F.normalize(super().embed(inputs), dim=1)
