"""Front-ends against their reference implementations, and augmentations against what they say they do."""

import math

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio

from shared_utils.spectrograms import (
    AddNoise,
    Gain,
    KaldiFbank,
    LogMel,
    Mfcc,
    RandomCrop,
    SpecAugment,
    SpeedPerturb,
    TimeShift,
    _a_weighting,
    between_class,
    change_speed,
    mixup,
)

MEL = {"n_fft": 1024, "hop_length": 320, "f_min": 20, "n_mels": 64}


@pytest.fixture(scope="module")
def waveforms() -> torch.Tensor:
    """Six clips of 1.2 s that differ in colour and level: tones, noises, a near-silent one."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 19200, generator=generator)
    tones = torch.sin(2 * torch.pi * torch.tensor([[55.0], [220], [880], [2000], [3500], [7000]]) * _seconds(19200))
    return 0.05 * noise + 0.3 * tones * torch.tensor([[1.0], [0.1], [0.5], [1], [0.01], [1]])


@pytest.fixture(scope="module")
def real_waveforms(real_data) -> torch.Tensor:
    """Twenty real clips as int16 (20, 80000), two of each class of ESC-10."""
    files = sorted((real_data / "ESC-50-master" / "audio").iterdir())[::20]
    return torch.stack([torch.tensor(np.resize(sf.read(file, dtype="int16")[0], 80000)) for file in files])


def _seconds(n_samples: int) -> torch.Tensor:
    return torch.arange(n_samples) / 16000


def _extract_ast(waveforms: torch.Tensor, max_length: int) -> torch.Tensor:
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor(max_length=max_length)
    clips = list(waveforms.float().div(32768).numpy())
    return torch.tensor(np.stack(extractor(clips, sampling_rate=16000)["input_values"]))


# --- KaldiFbank ---


@pytest.mark.parametrize("max_length", [498, 300, 1024])
def test_kaldi_fbank_equals_the_ast_feature_extractor_on_real_clips(real_waveforms, max_length):
    ours = KaldiFbank(max_length=max_length)(real_waveforms)
    torch.testing.assert_close(ours, _extract_ast(real_waveforms, max_length), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_kaldi_fbank_equals_the_extractors_numpy_path(real_waveforms, monkeypatch):
    import transformers.models.audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer as module

    monkeypatch.setattr(module, "is_speech_available", lambda: False)
    theirs = _extract_ast(real_waveforms[:4], 498)
    torch.testing.assert_close(KaldiFbank(max_length=498)(real_waveforms[:4]), theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("n_mels", [23, 64, 128])
@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_kaldi_fbank_equals_torchaudio(waveforms, n_mels, sample_rate):
    theirs = [
        torchaudio.compliance.kaldi.fbank(
            waveform[None], sample_frequency=sample_rate, window_type="hanning", num_mel_bins=n_mels
        )
        for waveform in waveforms
    ]
    ours = KaldiFbank(sample_rate, n_mels, normalize=False)(waveforms)
    torch.testing.assert_close(ours, torch.stack(theirs), atol=2e-3, rtol=0)


def test_kaldi_fbank_ignores_a_constant_offset_and_floors_silence(waveforms):
    layer = KaldiFbank(normalize=False)
    torch.testing.assert_close(layer(waveforms + 0.25), layer(waveforms), atol=5e-3, rtol=0)
    assert layer(torch.full((1, 4000), 0.3)).unique().tolist() == pytest.approx([np.log(2**-23)])


def test_kaldi_fbank_fills_before_it_normalizes(waveforms):
    padded = KaldiFbank(max_length=200)(waveforms)  # 118 frames and 82 of zeros
    assert padded[:, 118:].unique().tolist() == pytest.approx([4.2677393 / (2 * 4.5689974)])


def test_kaldi_fbank_refuses_less_than_a_frame():
    assert KaldiFbank()(torch.zeros(1, 400)).shape == (1, 1, 128)
    with pytest.raises(ValueError, match="399 samples is shorter than one frame; pad it to 400"):
        KaldiFbank()(torch.zeros(1, 399))


# --- LogMel and Mfcc ---


def test_log_mel_equals_torchaudio_transforms(waveforms, real_waveforms):
    to_mel, to_db = torchaudio.transforms.MelSpectrogram(16000, **MEL), torchaudio.transforms.AmplitudeToDB("power", 80)
    for clips in (waveforms, real_waveforms.float() / 32768):
        theirs = torch.stack([to_db(to_mel(clip)) for clip in clips])
        torch.testing.assert_close(LogMel()(clips), theirs, atol=1e-4, rtol=0)


def test_log_mel_equals_librosa(waveforms):
    import librosa

    theirs = [
        librosa.power_to_db(
            librosa.feature.melspectrogram(
                y=waveform,
                sr=16000,
                n_fft=1024,
                hop_length=320,
                n_mels=64,
                fmin=20,
                htk=True,
                norm=None,
                pad_mode="reflect",
            ),
            ref=1,
            amin=1e-10,
            top_db=80,
        )
        for waveform in waveforms.numpy()
    ]
    np.testing.assert_allclose(LogMel()(waveforms).numpy(), np.stack(theirs), atol=5e-3)
    edges = librosa.mel_frequencies(66, fmin=20, fmax=8000, htk=True)
    np.testing.assert_allclose(LogMel().frequencies(), edges[1:-1], rtol=1e-6)


def test_mfcc_equals_torchaudio_and_librosa(waveforms):
    import librosa

    to_mfcc = torchaudio.transforms.MFCC(16000, 40, melkwargs=MEL)
    ours = Mfcc()(waveforms)
    torch.testing.assert_close(ours, torch.stack([to_mfcc(clip) for clip in waveforms]), atol=1e-3, rtol=0)
    theirs = np.stack([librosa.feature.mfcc(S=spec, n_mfcc=40, norm="ortho") for spec in LogMel()(waveforms).numpy()])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-3)


def test_top_db_none_leaves_the_depth(waveforms):
    shallow, deep = LogMel()(waveforms), LogMel(top_db=None)(waveforms)
    assert (shallow.amax((1, 2)) - shallow.amin((1, 2))).max() <= 80.001
    silence = LogMel(top_db=None)(torch.zeros(1, 4000))
    assert silence.unique().tolist() == [-100]  # amin 1e-10
    torch.testing.assert_close(shallow, torch.maximum(deep, deep.amax((1, 2), keepdim=True) - 80))


def test_layers_refuse_what_is_no_batch_of_waveforms():
    with pytest.raises(ValueError, match=r"shape \(16000,\) are no batch; give \(batch, samples\)"):
        LogMel()(torch.zeros(16000))
    with pytest.raises(ValueError, match="512 samples is shorter than one frame; pad it to 513"):
        LogMel()(torch.zeros(1, 512))
    with pytest.raises(ValueError, match="torch.uint8 have no known full scale"):
        KaldiFbank()(torch.zeros(1, 16000, dtype=torch.uint8))
    with pytest.raises(ValueError, match="20 mel bands have no 40 coefficients"):
        Mfcc(n_mfcc=40, n_mels=20)


# --- What holds for every front-end ---


@pytest.mark.parametrize("layer", [LogMel(), Mfcc(), KaldiFbank()], ids=lambda layer: type(layer).__name__)
class TestEveryFrontEnd:
    def test_a_clip_does_not_depend_on_its_neighbours(self, layer, waveforms):
        quiet, loud = 1e-4 * waveforms[:1], 1e3 * waveforms[1:]
        torch.testing.assert_close(layer(torch.cat([quiet, loud]))[:1], layer(quiet), atol=1e-4, rtol=0)

    def test_int16_is_the_same_as_float(self, layer, waveforms):
        int16 = (waveforms * 32768).round().clamp(-32768, 32767).to(torch.int16)
        torch.testing.assert_close(layer(int16), layer(int16.double() / 32768), atol=0, rtol=0)

    def test_autocast_and_a_bfloat16_model_leave_it_in_float32(self, layer, waveforms):
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(waveforms), layer(waveforms.double()), atol=0, rtol=0)
            assert layer(waveforms).dtype == torch.float32

    def test_nan_passes_through_to_its_own_clip_only(self, layer, waveforms):
        damaged = waveforms.clone()
        damaged[2, 9600] = torch.nan
        assert layer(damaged).isnan().flatten(1).any(1).tolist() == [False, False, True, False, False, False]

    def test_tables_are_no_part_of_the_weights_and_move_with_the_layer(self, layer):
        assert layer.state_dict() == {}
        assert {buffer.device.type for buffer in type(layer)().to("meta").buffers()} == {"meta"}

    def test_a_click_stands_at_its_time(self, layer):
        click = torch.zeros(1, 48000)
        click[0, 24000] = 1  # at 1.5 s
        spec = layer(click)[0]
        spec = spec if isinstance(layer, KaldiFbank) else spec.T  # (frames, bins)
        brightest = (spec - spec[0]).abs().sum(1).argmax().item()
        assert layer.frame_times(len(spec))[brightest] == pytest.approx(1.5, abs=0.011)


@pytest.mark.parametrize("layer", [LogMel(), KaldiFbank(normalize=False)], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("hertz", [440, 1500, 6000])
def test_a_tone_stands_at_its_frequency(layer, hertz):
    spec = layer(torch.sin(2 * torch.pi * hertz * _seconds(16000))[None])[0]
    brightest = spec.mean(0 if isinstance(layer, KaldiFbank) else 1).argmax().item()
    assert layer.frequencies()[brightest] == pytest.approx(hertz, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kaldi_fbank_on_cuda_equals_the_ast_feature_extractor(real_waveforms):
    ours = KaldiFbank(max_length=498).to("cuda")(real_waveforms.to("cuda")).cpu()
    torch.testing.assert_close(ours, _extract_ast(real_waveforms, 498), atol=1e-3, rtol=0)


# --- Augmentations ---

BANK = torch.randn(50_000, generator=torch.Generator().manual_seed(1))
OF_WAVEFORMS = [
    TimeShift(0.5, 16000), TimeShift(0.5, 16000, wrap=False), Gain(6), AddNoise(p=1), AddNoise(BANK, p=1),
    SpeedPerturb(),
]  # fmt: skip
NAMES = ["shift", "shift to silence", "gain", "white noise", "noise bank", "speed"]


@pytest.mark.parametrize("layer", OF_WAVEFORMS, ids=NAMES)
def test_augmentations_of_waveforms_act_in_training_only(layer, waveforms):
    assert layer.eval()(waveforms) is waveforms
    torch.manual_seed(0)
    augmented = layer.train()(waveforms)
    assert augmented.dtype == torch.float32 and augmented.shape == waveforms.shape
    assert ((augmented - waveforms).abs().amax(1) > 1e-3).all()
    int16 = (waveforms * 32767).to(torch.int16)
    assert layer(int16).dtype == torch.float32 and layer(int16).abs().max() < 3


@pytest.mark.parametrize("layer", OF_WAVEFORMS, ids=NAMES)
def test_every_clip_has_its_own_parameters_and_the_seed_gives_them_again(layer, waveforms):
    same = waveforms[:1].repeat(8, 1)
    torch.manual_seed(0)
    first = layer.train()(same)
    assert len(first.unique(dim=0)) == 8
    torch.manual_seed(0)
    assert torch.equal(layer(same), first)


def test_time_shift_turns_the_samples_round_and_no_further_than_it_may():
    counted = torch.arange(1.0, 1001).repeat(4000, 1)
    torch.manual_seed(0)
    shifted = TimeShift(0.05, 2000)(counted)  # up to 100 samples
    shifts = 1 - shifted[:, 0].long()  # what stands first came from -shift
    shifts = torch.where(shifts < -500, shifts + 1000, shifts)
    assert shifts.min() == -100 and shifts.max() == 100
    for row, shift in zip(shifted[:200], shifts[:200], strict=True):
        assert torch.equal(row, counted[0].roll(int(shift)))


def test_time_shift_without_wrap_lets_silence_in():
    counted = torch.arange(1.0, 1001).repeat(50, 1)
    for row in TimeShift(0.05, 2000, wrap=False)(counted):
        heard = row[row > 0]
        assert torch.equal(heard, torch.arange(heard[0], heard[-1] + 1)) and len(heard) >= 900
        assert heard[0] == 1 or heard[-1] == 1000


def test_time_shift_by_more_than_the_clip():
    counted = torch.arange(1.0, 11).repeat(20, 1)
    assert torch.equal(TimeShift(1, 16000)(counted).sort(1).values, counted)


@pytest.mark.parametrize(("n_samples", "step", "n_places"), [(40, 10, 7), (45, 10, 6), (97, 1, 4), (100, 1, 1)])
def test_crops_begin_at_every_multiple_of_the_step_equally_often(n_samples, step, n_places):
    from scipy import stats

    counted = torch.arange(100, dtype=torch.int16).repeat(7000, 1)
    torch.manual_seed(0)
    crops = RandomCrop(n_samples, step)(counted)
    assert crops.dtype == torch.int16 and crops.shape == (7000, n_samples)
    assert torch.equal(crops, crops[:, :1] + torch.arange(n_samples, dtype=torch.int16))
    places, counts = crops[:, 0].unique(return_counts=True)
    assert places.tolist() == [step * k for k in range(n_places)]
    assert n_places == 1 or stats.chisquare(counts.numpy()).pvalue > 0.01


def test_crops_are_of_their_own_clip_in_training_only_and_repeat_with_the_seed():
    waveforms = torch.arange(50.0)[:, None] + torch.linspace(0, 0.9, 300)
    crop = RandomCrop(100)
    assert crop.eval()(waveforms) is waveforms
    torch.manual_seed(3)
    first = crop.train()(waveforms)
    assert torch.equal(first.floor()[:, 0], torch.arange(50.0)) and torch.equal(
        first.floor()[:, 99], torch.arange(50.0)
    )
    assert not torch.equal(crop(waveforms), first)
    torch.manual_seed(3)
    assert torch.equal(crop(waveforms), first)


def test_crops_longer_than_the_clips_or_of_nothing_are_refused():
    with pytest.raises(
        ValueError, match="99 samples are shorter than a crop of 100; take shorter crops or longer clips"
    ):
        RandomCrop(100)(torch.zeros(2, 99))
    for arguments in ((0,), (100, 0)):
        with pytest.raises(ValueError, match="give 1 or more of each"):
            RandomCrop(*arguments)


def test_gain_stays_within_its_bounds(waveforms):
    same = waveforms[:1].repeat(2000, 1)[:, :100]
    torch.manual_seed(0)
    db = 20 * (Gain(6)(same)[:, 50] / same[:, 50]).log10()
    assert -6 <= db.min() < -5.9 and 5.9 < db.max() <= 6 and db.mean().abs() < 0.3


@pytest.mark.parametrize("noise", [None, BANK, BANK[:700], (BANK * 3000).to(torch.int16), BANK.numpy()])
def test_noise_has_the_ratio_it_was_asked_for(waveforms, noise):
    added = AddNoise(noise, snr_db=(10, 10), p=1)(waveforms) - waveforms
    snr = 10 * (waveforms.square().mean(1) / added.square().mean(1)).log10()
    torch.testing.assert_close(snr, torch.full((6,), 10.0), atol=0.01, rtol=0)


def test_noise_comes_to_a_share_p_of_clips_at_ratios_between_low_and_high(waveforms):
    same = waveforms[:1].repeat(1000, 1)[:, :2000]
    torch.manual_seed(0)
    added = AddNoise(BANK, snr_db=(0, 20), p=0.3)(same) - same
    noisy = added.abs().amax(1) > 0
    assert 0.25 < noisy.float().mean() < 0.35
    snr = 10 * (same[0].square().mean() / added[noisy].square().mean(1)).log10()
    assert -0.1 < snr.min() < 1 and 19 < snr.max() < 20.1 and 9 < snr.mean() < 11


def test_noise_leaves_silence_silent_and_refuses_a_bank_of_clips():
    assert AddNoise(p=1)(torch.zeros(2, 1000)).abs().max() == 0
    assert AddNoise(torch.zeros(5000), p=1)(torch.ones(2, 1000)).unique().tolist() == [1]
    with pytest.raises(ValueError, match=r"shape \(3, 100\); give one row of samples"):
        AddNoise(torch.zeros(3, 100))


def test_speed_scales_frequency_and_duration_about_the_middle():
    tone = torch.sin(2 * torch.pi * 400 * (_seconds(16001) - 0.5)).repeat(300, 1)
    torch.manual_seed(0)
    played = SpeedPerturb(0.2)(tone)
    assert played.shape == tone.shape and played[:, 8000].abs().max() < 1e-6  # the middle stays
    peaks = torch.fft.rfft(played * torch.hann_window(16001), n=64_000).abs().argmax(1) / 4  # Hz
    factors = peaks / 400
    assert 0.8 <= factors.min() < 0.81 and 1.19 < factors.max() <= 1.2
    assert factors.mean().item() == pytest.approx(1, abs=0.02)
    seconds = played.abs().gt(1e-9).sum(1) / 16000  # a faster tone is over sooner, and silence stands around it
    torch.testing.assert_close(seconds, (1 / factors).clamp(max=1), atol=0.01, rtol=0)
    expected = torch.sin(2 * torch.pi * 400 * factors[:, None] * (_seconds(16001) - 0.5))
    inner = slice(7000, 9001)  # near the middle, where the step of 1/4 Hz of the peaks does not matter
    torch.testing.assert_close(played[:, inner], expected[:, inner], atol=0.06, rtol=0)


def test_speed_of_factor_one_is_exact_and_a_share_of_one_is_refused(waveforms, monkeypatch):
    assert torch.equal(SpeedPerturb(0.0)(waveforms), waveforms)
    monkeypatch.setattr(torch, "rand", lambda *size, device=None: torch.full(size, 0.5))
    assert torch.equal(SpeedPerturb(0.15)(waveforms), waveforms)
    with pytest.raises(ValueError, match="share of 1; give 0 or more and less than 1"):
        SpeedPerturb(1)


def test_change_of_speed_by_hand_for_all_clips_alike(waveforms):
    tone = torch.sin(2 * torch.pi * 400 * (_seconds(16001) - 0.5)).repeat(2, 1)
    slow, fast = change_speed(tone, 0.9), change_speed(tone, 1.1)
    places = _seconds(16001) - 0.5
    torch.testing.assert_close(slow[1], torch.sin(2 * torch.pi * 360 * places), atol=0.005, rtol=0)
    inside = places.abs() < 0.5 / 1.1
    torch.testing.assert_close(fast[1], torch.sin(2 * torch.pi * 440 * places) * inside, atol=0.02, rtol=0)
    assert torch.equal(change_speed((waveforms * 100).to(torch.int16), 1), (waveforms * 100).to(torch.int16) / 32768)
    for factor in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"played {factor} times as fast"):
            change_speed(waveforms, factor)


@pytest.mark.parametrize("random", [0.0, 1.0 - 2**-24])
@pytest.mark.parametrize("n_samples", [1, 2, 17, 1000])
def test_speed_interpolates_on_its_grid_up_to_both_ends(monkeypatch, random, n_samples):
    monkeypatch.setattr(torch, "rand", lambda *size, device=None: torch.full(size, random))
    clip = torch.randn(1, n_samples, generator=torch.Generator().manual_seed(0))
    played = SpeedPerturb(0.3)(clip)
    positions = (np.arange(n_samples) - (n_samples - 1) / 2) * (1 + 0.3 * (2 * random - 1)) + (n_samples - 1) / 2
    known = np.arange(-1, n_samples + 1)  # one zero on either side
    expected = np.interp(positions, known, np.pad(clip[0].numpy(), 1), left=0, right=0)
    np.testing.assert_allclose(played[0], expected, atol=1e-4)


def test_spec_augment_covers_bands_and_stretches_of_at_most_the_width():
    specs = torch.rand(400, 40, 100) + 1
    torch.manual_seed(0)
    covered = SpecAugment(1, 8, 1, 20, value=0.0)(specs) == 0
    bands, stretches = covered.all(2), covered.all(1)  # (clips, mels), (clips, frames)
    assert torch.equal(covered, bands[:, :, None] | stretches[:, None, :])
    for masks, width in ((bands, 8), (stretches, 20)):
        assert masks.sum(1).min() == 0 and masks.sum(1).max() == width
        assert (masks.int().diff(dim=1).abs().sum(1) <= 2).all()  # one piece
        assert masks.any(0).all()  # anywhere
        assert len(masks.unique(dim=0)) > 100  # each clip its own
    assert torch.equal(SpecAugment(1, 8, 1, 20, value=0.0).eval()(specs), specs)


def test_spec_augment_fills_with_the_clips_mean():
    specs = torch.arange(1.0, 4)[:, None, None] * (torch.rand(3, 40, 100) + 1)
    torch.manual_seed(0)
    augmented = SpecAugment(2, 8, 2, 20)(specs)
    changed = augmented != specs
    assert changed.flatten(1).any(1).all()
    torch.testing.assert_close(augmented, torch.where(changed, specs.mean((1, 2), keepdim=True), specs))
    with pytest.raises(ValueError, match="'median'; give a number or \"mean\""):
        SpecAugment(value="median")


def test_mixup_mixes_inputs_and_targets_alike():
    inputs, targets = torch.eye(64), torch.eye(64)
    torch.manual_seed(0)
    mixed, mixed_targets = mixup(inputs[:, :, None], targets, alpha=0.4)
    torch.testing.assert_close(mixed[:, :, 0], mixed_targets)
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(64))
    assert ((mixed_targets > 0).sum(1) <= 2).all()
    partners = mixed_targets - torch.diag(mixed_targets.diag())
    assert ((partners > 0).sum(0) <= 1).all()  # nobody is the partner of two
    assert len(mixed_targets.diag().unique()) > 50  # each clip its own share


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_draws_shares_from_a_beta_distribution(alpha):
    from scipy import stats

    generator = torch.Generator().manual_seed(0)
    targets = torch.eye(2).repeat(10_000, 1)
    shares = mixup(targets, targets, alpha, generator)[1]
    # A clip paired with its own class keeps all of it; the others show their share.
    shares = shares[(shares > 0).all(1)].flatten()[::2].double()
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_mixup_repeats_with_its_generator_and_leaves_the_global_numbers_alone():
    inputs, targets = torch.randn(16, 500), torch.eye(16)
    torch.manual_seed(5)
    untouched = torch.rand(3)
    torch.manual_seed(5)
    first, again = (mixup(inputs, targets, 0.3, torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.rand(3), untouched)


def test_mixup_takes_int16_and_survives_a_tiny_alpha():
    mixed, targets = mixup(torch.full((8, 10), 16384, dtype=torch.int16), torch.eye(8), alpha=1e-3)
    torch.testing.assert_close(mixed, torch.full((8, 10), 0.5))
    assert targets.isfinite().all()


def test_mixup_refuses_class_numbers_and_alpha_zero():
    with pytest.raises(ValueError, match="make them one-hot"):
        mixup(torch.zeros(4, 10), torch.tensor([0, 1, 2, 1]), 0.3)
    with pytest.raises(ValueError, match="alpha 0; give alpha > 0, or leave mixup out"):
        mixup(torch.zeros(4, 10), torch.eye(4), 0)


# --- Between-class learning ---


def _measure_level(waveform: np.ndarray, sample_rate: int) -> float:
    """Return the largest A-weighted level of a clip's windows in dB, one window after the other."""
    n_fft = {16000: 2048, 44100: 4096, 8000: 1024}[sample_rate]
    squared = np.fft.rfftfreq(n_fft, 1 / sample_rate)[1:] ** 2
    db = 2 + 20 * (
        2 * np.log10(12194) + 2 * np.log10(squared) - np.log10(squared + 12194**2) - np.log10(squared + 20.6**2)
        - 0.5 * np.log10(squared + 107.7**2) - 0.5 * np.log10(squared + 737.9**2)
    )  # fmt: skip
    levels, first = [-80.0], 0
    while first == 0 or first + n_fft // 2 < len(waveform):
        frame = np.zeros(n_fft)
        part = waveform[first : first + n_fft]
        frame[: len(part)] = part
        power = np.abs(np.fft.rfft(frame * np.hanning(n_fft + 1)[:-1])[1:]) ** 2
        levels.append(10 * np.log10(np.sum(power * 10 ** (db / 10)) + 1e-30))
        first += n_fft // 2
    return max(levels)


@pytest.mark.parametrize(
    ("n_samples", "sample_rate"), [(19200, 16000), (24000, 44100), (7000, 8000), (700, 16000), (2049, 16000)]
)
def test_between_class_equals_its_formulas_clip_by_clip(waveforms, n_samples, sample_rate):
    clips = waveforms.repeat(1, 2)[:, :n_samples] * torch.tensor([[1.0], [0.3], [0.01], [1], [1e-7], [0.5]])
    clips[3, :-400] = 0  # all that is heard lies in the last window
    mixed, targets = between_class(clips, torch.eye(6), sample_rate, torch.Generator().manual_seed(5))
    levels = [_measure_level(clip, sample_rate) for clip in clips.double().numpy()]
    assert min(levels) == -80 and max(levels) - sorted(levels)[1] > 20
    partners = (targets - torch.diag(targets.diag())).argmax(1)
    for k, partner in enumerate(partners.tolist()):
        r = targets[k, k].double().item()
        assert targets[k, partner].item() == pytest.approx(1 - r) and targets[k].count_nonzero() == 2
        p = 1 / (1 + 10 ** ((levels[k] - levels[partner]) / 20) * (1 - r) / r)
        expected = (p * clips[k].double() + (1 - p) * clips[partner].double()) / np.sqrt(p**2 + (1 - p) ** 2)
        torch.testing.assert_close(mixed[k].double(), expected, atol=2e-4 * expected.abs().max().item(), rtol=0)


def test_the_a_curve_equals_the_published_values():
    db = {31.623: -39.4, 100: -19.1, 199.53: -10.9, 501.19: -3.2, 1000: 0, 1995.3: 1.2, 3981.1: 1.0, 10000: -2.5}
    ours = 20 * _a_weighting(torch.tensor(list(db))).log10()
    np.testing.assert_allclose(ours, list(db.values()), atol=0.05)
    assert 20 * _a_weighting(torch.tensor(1e4)).log10().item() == pytest.approx(-2.49, abs=0.005)
    assert _a_weighting(torch.zeros(1)).item() == 0


def test_two_tones_are_heard_at_the_ratio_of_the_targets():
    amplitudes, weights = torch.tensor([0.9, 0.02]), torch.tensor([10 ** (-19.14 / 20), 1.0])  # 100 Hz and 1 kHz
    tones = amplitudes[:, None] * torch.sin(2 * torch.pi * torch.tensor([[100.0], [1000]]) * _seconds(16000))
    mixed, targets = between_class(tones, torch.eye(2), generator=torch.Generator().manual_seed(2))
    heard = torch.fft.rfft(mixed).abs()[:, [100, 1000]] / 8000 * weights
    torch.testing.assert_close(heard / heard.sum(1, keepdim=True), targets, atol=2e-3, rtol=0)
    assert 0.05 < targets.min() and targets.max() < 0.95  # both are there to be heard


def test_every_clip_gets_a_partner_of_another_class_all_equally_likely():
    from scipy import stats

    labels = torch.tensor([0] * 60 + [1, 2, 2, 2])
    marks = torch.eye(64)  # a clip of one click, by which it is found in the mixture
    counts = torch.zeros(64, 64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        mixed, targets = between_class(marks, torch.eye(3)[labels], generator=generator)
        mixed = mixed - torch.diag(mixed.diag())
        assert ((mixed > 0).sum(1) == 1).all() and ((targets > 0).sum(1) == 2).all()
        counts += mixed > 0
    assert not counts[labels[:, None] == labels].any()
    assert stats.chisquare(counts[:60, 60:].sum(0).numpy()).pvalue > 0.01
    assert stats.chisquare(counts[61:, :61].sum(0).numpy()).pvalue > 0.01


def test_between_class_draws_shares_from_0_to_1():
    from scipy import stats

    generator = torch.Generator().manual_seed(0)
    shares = between_class(torch.ones(2000, 50), torch.eye(2).repeat(1000, 1), generator=generator)[1]
    assert stats.kstest(shares[::2, 0].double(), "uniform").pvalue > 0.01
    torch.testing.assert_close(shares.sum(1), torch.ones(2000))


def test_a_batch_of_one_class_keeps_it_and_silence_gives_no_nan(waveforms, monkeypatch):
    targets = torch.eye(4)[[2] * 6]
    mixed, mixed_targets = between_class(waveforms, targets)
    torch.testing.assert_close(mixed_targets, targets)
    assert mixed.isfinite().all()
    assert between_class(waveforms[:1], targets[:1])[0].isfinite().all()
    assert between_class(torch.zeros(4, 9000), torch.eye(4))[0].unique().tolist() == [0]
    silence = waveforms[:2].clone()
    silence[0] = 0
    mixed = between_class(silence, torch.eye(2))[0]
    assert mixed.isfinite().all() and mixed.abs().amax(1).min() > 0
    monkeypatch.setattr(torch, "rand", lambda *size, generator=None: torch.zeros(size))  # shares of 0
    mixed, mixed_targets = between_class(waveforms[:2], torch.eye(2))
    assert torch.equal(mixed, waveforms[[1, 0]]) and torch.equal(mixed_targets, torch.eye(2)[[1, 0]])


def test_between_class_repeats_with_its_generator_and_leaves_the_global_numbers_alone(waveforms):
    torch.manual_seed(5)
    untouched = torch.rand(3)
    torch.manual_seed(5)
    first, again = (
        between_class(waveforms, torch.eye(6), generator=torch.Generator().manual_seed(3))[0] for _ in range(2)
    )
    assert torch.equal(first, again)
    assert torch.equal(torch.rand(3), untouched)
    torch.manual_seed(5)
    third = between_class(waveforms, torch.eye(6))[0]
    torch.manual_seed(5)
    assert torch.equal(between_class(waveforms, torch.eye(6))[0], third) and not torch.equal(third, first)


def test_between_class_takes_int16_and_stays_in_float32_under_autocast(waveforms):
    def mix(waveforms):
        return between_class(waveforms, torch.eye(6), generator=torch.Generator().manual_seed(0))[0]

    int16 = (waveforms * 32767).clamp(-32768, 32767).to(torch.int16)
    torch.testing.assert_close(mix(int16), mix(int16.double() / 32768), atol=0, rtol=0)
    expected = mix(waveforms)
    with torch.autocast("cpu", torch.bfloat16):
        assert mix(waveforms).dtype == torch.float32 and torch.equal(mix(waveforms), expected)


def test_between_class_refuses_class_numbers_and_what_is_no_batch_of_waveforms():
    with pytest.raises(ValueError, match="between_class blends class probabilities .* make them one-hot"):
        between_class(torch.zeros(3, 4000), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"shape \(3, 1, 4000\) are no batch; give \(batch, samples\)"):
        between_class(torch.zeros(3, 1, 4000), torch.eye(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_between_class_on_cuda_equals_the_cpu(waveforms):
    ours = between_class(waveforms.cuda(), torch.eye(6).cuda(), generator=torch.Generator().manual_seed(0))
    expected = between_class(waveforms, torch.eye(6), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close([each.cpu() for each in ours], list(expected), atol=1e-4, rtol=0)
