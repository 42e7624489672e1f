"""The model of ast_lora_finetuning, as it was when the run was saved; load_run executes this file."""

from shared_utils.spectrograms import KaldiFbank
from torch import nn
from transformers.models.audio_spectrogram_transformer.configuration_audio_spectrogram_transformer import ASTConfig
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import ASTForAudioClassification


class SmallAst(nn.Module):
    """An untrained AST of any size with its front-end: waveforms (batch, samples) -> logits."""

    def __init__(self, n_classes, hidden_size, n_layers, patch_size, max_length, sample_rate, n_mels=64, stride=10):
        super().__init__()
        if hidden_size % 64:
            raise ValueError(f"HIDDEN_SIZE = {hidden_size} must be a multiple of 64, the width of an attention head.")
        config = ASTConfig(
            hidden_size=hidden_size, num_hidden_layers=n_layers, num_attention_heads=hidden_size // 64,
            intermediate_size=4 * hidden_size, patch_size=patch_size, frequency_stride=stride, time_stride=stride,
            max_length=max_length, num_mel_bins=n_mels, num_labels=n_classes)
        model = ASTForAudioClassification(config)
        self.front_end = KaldiFbank(sample_rate, n_mels, max_length)
        self.encoder, self.head = model.audio_spectrogram_transformer, model.classifier
        for name in ("cls_token", "distillation_token", "position_embeddings"):
            nn.init.trunc_normal_(getattr(self.encoder.embeddings, name), std=0.02)

    def forward(self, waveforms):
        states = self.encoder(self.front_end(waveforms)).last_hidden_state.float()  # (batch, tokens, hidden_size)
        return self.head(states[:, :2].mean(1))  # (batch, classes)
