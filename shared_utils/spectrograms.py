"""Front-ends as layers (LogMel, Mfcc, KaldiFbank) and augmentations beside them: whole batches, on the model's device.

A front-end takes waveforms (batch, samples), int16 or float in [-1, 1], and computes in float32 even under autocast:
bfloat16 has too few digits for a sum over a spectrum. Its tables move with `.to(device)` and stay out of
`state_dict()`, so that weights load whatever the front-end. Augmentations draw every clip's parameters from PyTorch's
global random numbers in training mode, and return their input untouched in evaluation mode.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torchaudio
from torch import nn


class LogMel(nn.Module):
    """Turn waveforms (batch, samples) into log-mel spectrograms (batch, n_mels, frames) in dB.

    HTK's mel scale, triangles without area normalisation, Hann window, frames centred on multiples of `hop_length`
    with the ends mirrored (torchaudio's defaults). `f_max` is in Hz, None for half the sample rate. `top_db` raises
    what lies deeper than that below the clip's own loudest point, None for no floor. Raises ValueError for waveforms of
    another form, or too short to mirror (n_fft // 2 samples).
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 64,
        n_fft: int = 1024,
        hop_length: int = 320,
        f_min: float = 20,
        f_max: float | None = None,
        top_db: float | None = 80.0,
    ):
        super().__init__()
        self.sample_rate, self.n_mels, self.n_fft, self.hop_length = sample_rate, n_mels, n_fft, hop_length
        self.f_min, self.f_max, self.top_db = f_min, f_max or sample_rate / 2, top_db
        filters = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, f_min, self.f_max, n_mels, sample_rate)
        self.register_buffer("filters", filters, persistent=False)  # (bins, n_mels)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.blocks = _find_blocks(filters)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        _check_waveforms(waveforms, shortest=self.n_fft // 2 + 1)
        with torch.autocast(waveforms.device.type, enabled=False):
            return _in_chunks(self._log_mel, waveforms)

    def _log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(_to_float(waveforms), (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        frames = _unfold(padded, self.n_fft, self.hop_length) * self.window  # (batch, frames, n_fft)
        db = 10 * _filter(_power(frames), self.filters, self.blocks).clamp(min=1e-10).log10()
        if self.top_db is not None:
            # One maximum a clip: a clip's values must not depend on its neighbours in the batch (AmplitudeToDB takes
            # one maximum for all of a 3-D input).
            db = torch.maximum(db, db.amax((1, 2), keepdim=True) - self.top_db)
        return db.transpose(1, 2)  # (batch, n_mels, frames)

    def frame_times(self, n_frames: int) -> np.ndarray:
        """Return the centre of each frame in seconds (n_frames,)."""
        return np.arange(n_frames) * self.hop_length / self.sample_rate

    def frequencies(self) -> np.ndarray:
        """Return the centre of each mel filter in Hz (n_mels,)."""
        low, high = 2595 * np.log10(1 + np.array([self.f_min, self.f_max]) / 700)
        return 700 * (10 ** (np.linspace(low, high, self.n_mels + 2)[1:-1] / 2595) - 1)


class Mfcc(nn.Module):
    """Turn waveforms (batch, samples) into mel-frequency cepstral coefficients (batch, n_mfcc, frames).

    The orthonormal cosine transform (DCT-II) of LogMel's dB with `top_db` 80, as torchaudio and librosa do it. Raises
    ValueError as LogMel does, and if `n_mfcc` is greater than `n_mels`.
    """

    def __init__(
        self, sample_rate: int = 16000, n_mfcc: int = 40, n_mels: int = 64, n_fft: int = 1024, hop_length: int = 320
    ):
        super().__init__()
        if n_mfcc > n_mels:
            raise ValueError(f"{n_mels} mel bands have no {n_mfcc} coefficients; raise n_mels or lower n_mfcc.")
        self.log_mel = LogMel(sample_rate, n_mels, n_fft, hop_length)
        dct = torchaudio.functional.create_dct(n_mfcc, n_mels, norm="ortho")  # (n_mels, n_mfcc)
        self.register_buffer("dct", dct, persistent=False)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        specs = self.log_mel(waveforms)
        with torch.autocast(waveforms.device.type, enabled=False):
            return self.dct.T @ specs

    def frame_times(self, n_frames: int) -> np.ndarray:
        """Return the centre of each frame in seconds (n_frames,)."""
        return self.log_mel.frame_times(n_frames)

    def frequencies(self) -> np.ndarray:
        """Return the number of each coefficient (n_mfcc,): a coefficient is a shape over all bands and has no Hz."""
        return np.arange(self.dct.shape[1], dtype=float)


class KaldiFbank(nn.Module):
    """Turn waveforms (batch, samples) into Kaldi's log-mel filter bank (batch, frames, n_mels): the front-end of AST.

    Equal to `transformers.ASTFeatureExtractor` and to `torchaudio.compliance.kaldi.fbank(window_type="hanning")`, which
    take one clip at a time: frames of 25 ms every 10 ms without their mean, pre-emphasis 0.97, Hann window, power
    spectrum, triangles on the mel scale from 20 Hz to half the sample rate, natural logarithm. With `max_length` the
    frames are cut or filled with zeros to that number, then (x - mean) / (2 * std) unless `normalize` is False, in that
    order: Gong et al., AST: Audio Spectrogram Transformer (2021). The default mean and std are AudioSet's. Raises
    ValueError for waveforms of another form or shorter than one frame.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 128,
        max_length: int | None = None,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        normalize: bool = True,
    ):
        super().__init__()
        self.sample_rate, self.n_mels, self.max_length = sample_rate, n_mels, max_length
        self.mean, self.std, self.normalize = mean, std, normalize
        self.frame_length, self.hop_length = int(sample_rate * 0.025), int(sample_rate * 0.010)
        self.n_fft = 2 ** (self.frame_length - 1).bit_length()

        bins = _kaldi_mel(np.arange(self.n_fft // 2 + 1) * sample_rate / self.n_fft)[:, None]
        edges = np.linspace(_kaldi_mel(20), _kaldi_mel(sample_rate / 2), n_mels + 2)
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        filters = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0)
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32), persistent=False)  # (bins, n_mels)
        self.blocks = _find_blocks(self.filters)
        # The window weighs a frame's first sample with 0, so it is left out, and with it Kaldi's rule for the
        # pre-emphasis of a sample that has none before it.
        window = torch.hann_window(self.frame_length, periodic=False)[1:]
        self.padding = self.n_fft - len(window)
        self.register_buffer("window", nn.functional.pad(window, (0, self.padding)), persistent=False)  # (n_fft,)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        _check_waveforms(waveforms, shortest=self.frame_length)
        if self.max_length is not None:
            waveforms = waveforms[:, : (self.max_length - 1) * self.hop_length + self.frame_length]
        with torch.autocast(waveforms.device.type, enabled=False):
            return _in_chunks(self._fbank, waveforms)

    def _fbank(self, waveforms: torch.Tensor) -> torch.Tensor:
        waveforms = _to_float(waveforms)
        means = _unfold(waveforms, self.frame_length, self.hop_length).mean(-1, keepdim=True)  # (batch, frames, 1)
        emphasised = waveforms[:, 1:] - 0.97 * waveforms[:, :-1]
        frames = _unfold(nn.functional.pad(emphasised, (0, self.padding)), self.n_fft, self.hop_length)
        # Every frame's mean goes after the pre-emphasis, which leaves 1 - 0.97 of it: one pass over the waveform
        # instead of one over its overlapping frames.
        frames = (frames - (1 - 0.97) * means).mul_(self.window)  # (batch, frames, n_fft)
        energies = _filter(_power(frames), self.filters, self.blocks)
        fbank = energies.clamp(min=torch.finfo(torch.float32).eps).log()  # (batch, frames, n_mels)
        if self.max_length is not None:
            fbank = nn.functional.pad(fbank, (0, 0, 0, self.max_length - fbank.shape[1]))
        return (fbank - self.mean) / (2 * self.std) if self.normalize else fbank

    def frame_times(self, n_frames: int) -> np.ndarray:
        """Return the centre of each frame in seconds (n_frames,)."""
        return (np.arange(n_frames) * self.hop_length + self.frame_length / 2) / self.sample_rate

    def frequencies(self) -> np.ndarray:
        """Return the centre of each mel filter in Hz (n_mels,)."""
        centres = np.linspace(_kaldi_mel(20), _kaldi_mel(self.sample_rate / 2), self.n_mels + 2)[1:-1]
        return 700 * (np.exp(centres / 1127) - 1)


class TimeShift(nn.Module):
    """Shift each waveform (batch, samples) by up to `max_seconds` either way, in training only.

    With `wrap` what leaves at one end enters at the other; without, silence enters.
    """

    def __init__(self, max_seconds: float, sample_rate: int, wrap: bool = True):
        super().__init__()
        self.max_samples, self.wrap = round(max_seconds * sample_rate), wrap

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return waveforms
        waveforms = _to_float(waveforms)
        n_clips, n_samples = waveforms.shape
        most = min(self.max_samples, n_samples)
        padded = nn.functional.pad(waveforms, (most, most), mode="circular" if self.wrap else "constant")
        starts = torch.randint(2 * most + 1, (n_clips,), device=waveforms.device)
        return padded.unfold(1, n_samples, 1)[torch.arange(n_clips, device=waveforms.device), starts]

    def extra_repr(self) -> str:
        return f"max_samples={self.max_samples}, wrap={self.wrap}"


class RandomCrop(nn.Module):
    """Take a random stretch of `n_samples` from each waveform (batch, samples), in training only: (batch, n_samples).

    It begins at a multiple of `step` samples, every place that fits equally likely; int16 stays int16. In evaluation
    waveforms keep their length. Raises ValueError for shorter waveforms, and for sizes below 1.
    """

    def __init__(self, n_samples: int, step: int = 1):
        super().__init__()
        if n_samples < 1 or step < 1:
            raise ValueError(f"A crop of {n_samples} samples in steps of {step} is impossible; give 1 or more of each.")
        self.n_samples, self.step = n_samples, step

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return waveforms
        if waveforms.shape[1] < self.n_samples:
            raise ValueError(
                f"Waveforms of {waveforms.shape[1]} samples are shorter than a crop of {self.n_samples}; "
                "take shorter crops or longer clips."
            )
        stretches = waveforms.unfold(1, self.n_samples, self.step)  # (batch, places, n_samples), a view
        places = torch.randint(stretches.shape[1], (len(waveforms),), device=waveforms.device)
        return stretches[torch.arange(len(waveforms), device=waveforms.device), places]

    def extra_repr(self) -> str:
        return f"n_samples={self.n_samples}, step={self.step}"


class Gain(nn.Module):
    """Make each waveform (batch, samples) louder or quieter by up to `max_db` decibels, in training only."""

    def __init__(self, max_db: float):
        super().__init__()
        self.max_db = max_db

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return waveforms
        db = self.max_db * (2 * torch.rand(len(waveforms), 1, device=waveforms.device) - 1)
        return _to_float(waveforms) * 10 ** (db / 20)

    def extra_repr(self) -> str:
        return f"max_db={self.max_db}"


class AddNoise(nn.Module):
    """Add noise to each waveform (batch, samples) with probability `p`, in training only.

    `noise` is one long recording (samples,), int16 or float, of which each clip gets its own stretch (repeated where it
    is shorter than a clip), or None for white noise. The signal-to-noise ratio of mean powers is uniform in `snr_db`
    (low, high). A silent clip stays silent. Raises ValueError for a bank that is not 1-D.
    """

    def __init__(
        self, noise: torch.Tensor | np.ndarray | None = None, snr_db: tuple[float, float] = (5, 30), p: float = 0.5
    ):
        super().__init__()
        self.snr_db, self.p = snr_db, p
        noise = torch.tensor(noise) if isinstance(noise, np.ndarray) else noise  # a copy: a memory-map is read-only
        if noise is not None and (noise.ndim != 1 or len(noise) == 0):
            raise ValueError(f"The noise has shape {tuple(noise.shape)}; give one row of samples (samples,), or None.")
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return waveforms
        waveforms = _to_float(waveforms)
        noise = torch.randn_like(waveforms) if self.noise is None else self._draw_stretches(waveforms)
        low, high = self.snr_db
        random = torch.rand(2, len(waveforms), 1, device=waveforms.device)
        ratio = 10 ** ((low + (high - low) * random[0]) / 10)
        wanted = waveforms.square().mean(1, keepdim=True) / ratio  # (batch, 1)
        present = noise.square().mean(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return waveforms + noise * (wanted / present).sqrt() * (random[1] < self.p)

    def _draw_stretches(self, waveforms: torch.Tensor) -> torch.Tensor:
        n_clips, n_samples = waveforms.shape
        noise = self.noise.repeat(math.ceil(n_samples / len(self.noise)))
        starts = torch.randint(len(noise) - n_samples + 1, (n_clips,), device=noise.device)
        return _to_float(noise.unfold(0, n_samples, 1)[starts])

    def extra_repr(self) -> str:
        noise = "white" if self.noise is None else f"{len(self.noise)} samples"
        return f"noise={noise}, snr_db={tuple(self.snr_db)}, p={self.p}"


class SpeedPerturb(nn.Module):
    """Play each waveform (batch, samples) faster or slower by a factor in 1 +- `max_share`, in training only.

    As `change_speed` does it, whose factor is the same for all clips. Ko et al., Audio augmentation for speech
    recognition (2015); a share of 0.15 as in Rybakov et al., Streaming keyword spotting on mobile devices (2020).
    Raises ValueError for a share outside 0 to 1.
    """

    def __init__(self, max_share: float = 0.15):
        super().__init__()
        if not 0 <= max_share < 1:
            raise ValueError(f"Speed cannot change by a share of {max_share}; give 0 or more and less than 1.")
        self.max_share = max_share

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return waveforms
        random = 2 * torch.rand(len(waveforms), 1, device=waveforms.device) - 1
        return _play_faster(_to_float(waveforms), self.max_share * random, self.max_share)

    def extra_repr(self) -> str:
        return f"max_share={self.max_share}"


def change_speed(waveforms: torch.Tensor, factor: float) -> torch.Tensor:
    """Play waveforms (batch, samples) `factor` times as fast; return float32 waveforms of the same length.

    Pitch and duration change together. The middle of the clip stays where it is: a faster one is followed and preceded
    by silence, a slower one loses its ends. Samples between samples are interpolated linearly, which dulls and mirrors
    the highest frequencies a little. Averaging the answers at the factors 0.9, 1 and 1.1, with which Ko et al., Audio
    augmentation for speech recognition (2015), made more voices to train on, lets a model hear a voice three ways.
    Raises ValueError for a factor that is not finite or not above 0.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"Nothing can be played {factor} times as fast; give a factor above 0, such as 0.9.")
    if factor == 1:
        return _to_float(waveforms)
    share = torch.full((len(waveforms), 1), factor - 1, device=waveforms.device)
    return _play_faster(_to_float(waveforms), share, abs(factor - 1))


def _play_faster(waveforms: torch.Tensor, share: torch.Tensor, most_share: float) -> torch.Tensor:
    """Play float waveforms (batch, samples) 1 + `share` (batch, 1) times as fast, within +- `most_share`."""
    n_samples = waveforms.shape[1]
    # Only how far a sample is displaced goes through float32: positions of long recordings have too many digits.
    places = torch.arange(n_samples, device=waveforms.device)
    displaced = share * (places - (n_samples - 1) / 2)  # (batch, samples)
    whole = displaced.floor()
    most = math.ceil(most_share * n_samples / 2) + 1
    padded = nn.functional.pad(waveforms, (most, most))
    left = whole.long().add_(places + most)
    return padded.gather(1, left).addcmul_(padded.diff(dim=1).gather(1, left), displaced.sub_(whole))


class SpecAugment(nn.Module):
    """Cover random bands and stretches of each spectrogram (batch, mels, frames), in training only.

    Each of `n_freq_masks` bands is 0 to `freq_width` mels high, each of `n_time_masks` stretches 0 to `time_width`
    frames long; what they cover takes the clip's mean or the given number. Park et al., SpecAugment (2019), without its
    time warping. Raises ValueError for another word than "mean".
    """

    def __init__(
        self,
        n_freq_masks: int = 2,
        freq_width: int = 8,
        n_time_masks: int = 2,
        time_width: int = 20,
        value: str | float = "mean",
    ):
        super().__init__()
        if isinstance(value, str) and value != "mean":
            raise ValueError(f'Masks cannot be filled with {value!r}; give a number or "mean".')
        self.n_freq_masks, self.freq_width = n_freq_masks, freq_width
        self.n_time_masks, self.time_width = n_time_masks, time_width
        self.value = value

    def forward(self, specs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return specs
        n_clips, n_mels, n_frames = specs.shape
        bands = _draw_masks(n_clips, n_mels, self.n_freq_masks, self.freq_width, specs.device)
        stretches = _draw_masks(n_clips, n_frames, self.n_time_masks, self.time_width, specs.device)
        value = specs.mean((1, 2), keepdim=True) if self.value == "mean" else specs.new_tensor(self.value)
        return torch.where(bands[:, :, None] | stretches[:, None, :], value, specs)

    def extra_repr(self) -> str:
        masks = f"{self.n_freq_masks} x {self.freq_width} mels, {self.n_time_masks} x {self.time_width} frames"
        return f"{masks}, value={self.value}"


def mixup(
    inputs: torch.Tensor, targets: torch.Tensor, alpha: float, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each clip and its target with another clip of the batch; return mixed (inputs, targets).

    `inputs` (batch, ...) are waveforms or spectrograms, `targets` (batch, classes) one-hot or probabilities. A clip
    keeps a share drawn from Beta(alpha, alpha), its own, and takes the rest from a partner that a random permutation
    gives it. Random numbers come from the CPU (`generator`, or PyTorch's global one), so every device gets the same.
    Zhang et al., mixup: Beyond Empirical Risk Minimization (2018). Raises ValueError for class numbers as targets or
    alpha <= 0.
    """
    _check_probabilities(targets, "mixup")
    if not alpha > 0:
        raise ValueError(f"mixup has no distribution for alpha {alpha}; give alpha > 0, or leave mixup out.")
    if inputs.dtype == torch.int16:
        inputs = _to_float(inputs)
    # A Beta variable is one Gamma variable's share of two; torch.distributions would not take the generator.
    tiny = torch.finfo(torch.float64).tiny
    concentration = torch.full((2, len(inputs)), alpha, dtype=torch.float64)
    gammas = torch._standard_gamma(concentration, generator=generator).clamp(min=tiny)
    share = (gammas[0] / gammas.sum(0)).to(inputs.device, inputs.dtype)  # (batch,)
    partner = torch.randperm(len(inputs), generator=generator).to(inputs.device)

    def blend(values: torch.Tensor) -> torch.Tensor:
        weight = share.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return weight * values + (1 - weight) * values[partner]

    return blend(inputs), blend(targets)


def between_class(
    waveforms: torch.Tensor,
    targets: torch.Tensor,
    sample_rate: int = 16000,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each clip with one of another class at a ratio of loudness; return mixed float32 waveforms and targets.

    `waveforms` (batch, samples) are int16 or float, `targets` (batch, classes) one-hot. Each clip draws a partner among
    the clips of other classes (in a batch of one class: among all), and its share r of the target from U(0, 1). The
    louder of the two is turned down, so that r is the share heard as well, and the mixture keeps their energy. A clip
    is as loud as its largest A-weighted level in Hann windows of about 0.1 s (half a window apart, the last filled up
    with zeros), and not below -80 dB. Random numbers come from the CPU (`generator`, or PyTorch's global one), so every
    device gets the same.
    Tokozume, Ushiku and Harada, Learning from between-class examples for deep sound recognition (2018). Raises
    ValueError for class numbers as targets and for waveforms of another form.
    """
    _check_probabilities(targets, "between_class")
    _check_waveforms(waveforms, shortest=1)
    n_clips, device = len(waveforms), waveforms.device
    # The whole table of chances costs less than asking a GPU which classes there are.
    chances = torch.rand(n_clips, n_clips, generator=generator).to(device)
    share = torch.rand(n_clips, 1, generator=generator).to(device)
    classes = targets.argmax(1).to(device)
    partner = (chances - (classes[:, None] == classes).float()).argmax(1)  # below 0: the same class
    with torch.autocast(device.type, enabled=False):
        waveforms = _to_float(waveforms)
        loudness = _in_chunks(lambda chunk: _loudness(chunk, sample_rate), waveforms)  # (batch, 1)
        # 1 / (1 + 10^((G1 - G2) / 20) (1 - r) / r) with amplitudes for the levels G in dB, so that r may be 0.
        first, second = share * loudness[partner], (1 - share) * loudness
        norm = (first.square() + second.square()).sqrt()
        mixed = first / norm * waveforms + second / norm * waveforms[partner]
    share = share.to(targets.device, targets.dtype)
    return mixed, share * targets + (1 - share) * targets[partner.to(targets.device)]


def _loudness(waveforms: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Return the largest A-weighted amplitude of each waveform's short windows: (batch, 1), 1e-4 (-80 dB) or more."""
    n_fft = 2 ** round(math.log2(0.1 * sample_rate))  # 2048 at 16 kHz, 4096 at 44.1 kHz, as the paper's authors
    hop = n_fft // 2
    n_hops = max(2, math.ceil(waveforms.shape[1] / hop))
    padded = nn.functional.pad(waveforms, (0, n_hops * hop - waveforms.shape[1]))
    frames = _unfold(padded, n_fft, hop) * torch.hann_window(n_fft, device=waveforms.device)
    weights = _a_weighting(torch.fft.rfftfreq(n_fft, 1 / sample_rate, device=waveforms.device)).square()
    return (_power(frames) @ weights).amax(1, keepdim=True).clamp(min=1e-8).sqrt()


def _a_weighting(hertz: torch.Tensor) -> torch.Tensor:
    """Return the factor of the A curve for amplitudes at frequencies in Hz, 1 at 1 kHz (IEC 61672-1, annex E)."""

    def response(hertz):
        squared = hertz**2
        middle = ((squared + 107.65265**2) * (squared + 737.86223**2)) ** 0.5
        return squared / (squared + 20.598997**2) * (squared / middle) * (12194.217**2 / (squared + 12194.217**2))

    return response(hertz) / response(1000)


def _check_probabilities(targets: torch.Tensor, name: str) -> None:
    if not targets.is_floating_point() or targets.ndim != 2:
        raise ValueError(
            f"{name} blends class probabilities (batch, classes), but the targets are {targets.dtype} of shape "
            f"{tuple(targets.shape)}; make them one-hot: torch.nn.functional.one_hot(targets, n_classes).float()."
        )


def _unfold(waveforms: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """Return the overlapping frames (batch, frames, size) of waveforms (batch, samples)."""
    if not torch.onnx.is_in_onnx_export():
        return waveforms.unfold(1, size, step)
    starts = torch.arange(0, int(waveforms.shape[1]) - size + 1, step)  # ONNX has no view, so the frames are gathered
    return waveforms[:, starts[:, None] + torch.arange(size)]


def _power(frames: torch.Tensor) -> torch.Tensor:
    """Return the power spectrum (batch, frames, n_fft // 2 + 1) of windowed frames (batch, frames, n_fft)."""
    if torch.onnx.is_in_onnx_export():
        # ONNX has no complex numbers. Whole turns are taken off in whole numbers: float32 knows no angle of 500,000.
        n_fft = int(frames.shape[-1])
        turns = torch.arange(n_fft)[:, None] * torch.arange(n_fft // 2 + 1) % n_fft
        angles = turns.double() * (2 * math.pi / n_fft)
        return (frames @ angles.cos().float()).square() + (frames @ angles.sin().float()).square()
    spectrum = torch.fft.rfft(frames)
    return spectrum.real.square() + spectrum.imag.square()


def _find_blocks(filters: torch.Tensor, size: int = 16) -> list[tuple[slice, slice]]:
    """Cut mel filters (bins, n_mels) into blocks of `size` neighbours; return each block's (bins, mels)."""
    blocks = []
    for first in range(0, filters.shape[1], size):
        mels = slice(first, first + size)
        bins = filters[:, mels].any(1).nonzero().flatten().tolist() or [0]
        blocks.append((slice(bins[0], bins[-1] + 1), mels))
    return blocks


def _filter(power: torch.Tensor, filters: torch.Tensor, blocks: list[tuple[slice, slice]]) -> torch.Tensor:
    """Return the energies (batch, frames, n_mels) that `filters` let through.

    `power @ filters` spends most of its time on zeros: each filter is a narrow triangle. In blocks it is 3 x faster.
    """
    return torch.cat([power[..., bins] @ filters[bins, mels] for bins, mels in blocks], dim=-1)


def _draw_masks(n_clips: int, size: int, n_masks: int, width: int, device: torch.device) -> torch.Tensor:
    """Return (n_clips, size) booleans, True where one of a clip's `n_masks` random masks lies."""
    random = torch.rand(2, n_clips, n_masks, 1, device=device)
    widths = (random[0] * (min(width, size) + 1)).floor()
    starts = (random[1] * (size - widths + 1)).floor()
    points = torch.arange(size, device=device)
    return ((points >= starts) & (points < starts + widths)).any(1)


def _kaldi_mel(hertz: float | np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hertz) / 700)


def _check_waveforms(waveforms: torch.Tensor, shortest: int) -> None:
    if waveforms.ndim != 2 or waveforms.shape[0] == 0:
        raise ValueError(f"Waveforms of shape {tuple(waveforms.shape)} are no batch; give (batch, samples).")
    if waveforms.shape[1] < shortest:
        raise ValueError(
            f"A waveform of {waveforms.shape[1]} samples is shorter than one frame; pad it to {shortest} or more."
        )


def _to_float(waveforms: torch.Tensor) -> torch.Tensor:
    """Return float32 samples, int16 ones divided by 32768."""
    if waveforms.dtype == torch.int16:
        return waveforms.float() / 32768
    if not waveforms.is_floating_point():
        raise ValueError(f"Samples of {waveforms.dtype} have no known full scale; give int16, or float in [-1, 1].")
    return waveforms.float()


def _in_chunks(transform: Callable[[torch.Tensor], torch.Tensor], waveforms: torch.Tensor) -> torch.Tensor:
    """Apply `transform` to all clips at once, on a CPU to a few at a time.

    A few clips' intermediate results stay in the processor's cache, which is twice as fast as a batch that does not.
    """
    if waveforms.device.type != "cpu" or torch.onnx.is_in_onnx_export():  # chunks would fix the batch size of the graph
        return transform(waveforms)
    return torch.cat([transform(chunk) for chunk in waveforms.split(2)])
