"""Train the demo model.

    python -m demo.train_asr --bank BANK --out FOLDER --minutes 42

Four losses: the decoder's cross-entropy; on the encoder's output, which word is spoken at each position (known by
construction; CTC for sentences said in one go) and how many tokens came before; and for four cross-attention heads, to
look at the word just written (first layer) and the word to be written (last layer). Without a loss on the encoder the
decoder learns the language and never the sound.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import WhisperForConditionalGeneration

from demo.compose import IGNORE, Batch, Composer
from demo.features import Bank, all_words
from demo.model import HEADS, WIDTH, unused_offset, used_tokens, whisper_config

GUIDED_HEADS = 2


class Learner(nn.Module):
    """The model over the used tokens with the helpers that training needs and the export leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.whisper = WhisperForConditionalGeneration(whisper_config(len(used_tokens()) + 1))
        self.words = nn.Linear(WIDTH, len(all_words()) + 1)
        self.count = nn.Linear(WIDTH, 1)
        self.looks: dict[int, torch.Tensor] = {}
        decoder = self.whisper.model.decoder
        with torch.no_grad():
            places = self.whisper.model.encoder.embed_positions.weight[: decoder.embed_positions.weight.shape[0]]
            decoder.embed_positions.weight.copy_(0.1 * places)
            decoder.embed_tokens.weight.normal_(0, 0.08)
        self._start()
        for number, layer in enumerate(decoder.layers):
            layer.encoder_attn.config = copy.deepcopy(layer.encoder_attn.config)
            layer.encoder_attn.config._attn_implementation = "eager"
            layer.encoder_attn.register_forward_hook(self._keep(number))

    @torch.no_grad()
    def _start(self) -> None:
        """Start values for so narrow a model: wider ones, and an encoder whose attention begins near its own place.

        Whisper's encoder positions are sines and cosines, so that queries and keys that both copy some frequencies
        make a position look at its neighbours: fast ones at the nearest, slow ones further.
        """
        for name, weight in self.whisper.model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                scale = 0.5 if "out_proj" in name or "fc2" in name else 1.4 if "conv" in name else 0.8
                nn.init.normal_(weight, 0, scale / (weight[0].numel() ** 0.5))
        half, each = WIDTH // 2, WIDTH // HEADS // 2
        for layer in self.whisper.model.encoder.layers:
            for head in range(HEADS):
                waves = torch.arange(each) + 4 + 6 * head
                for row, wave in enumerate(waves):
                    for offset, column in ((0, wave), (each, half + wave)):
                        place = 2 * each * head + offset + row
                        layer.self_attn.q_proj.weight[place, column] += 1.1
                        layer.self_attn.k_proj.weight[place, column] += 1.1

    def _keep(self, number: int):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
            self.looks[number] = output[1][:, :GUIDED_HEADS]

        return hook

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        """The encoder for windows of any length up to 30 s."""
        encoder = self.whisper.model.encoder
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None, None)[0]
        return encoder.layer_norm(hidden)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """The sum of the losses, and each of them to look at."""
        sound = self.encode(batch.mel)
        heard = self.words(sound)
        frame = F.cross_entropy(heard.flatten(0, 1), batch.frames.flatten(), ignore_index=IGNORE)
        known = ~batch.counts.isnan()
        ahead = (self.count(sound).squeeze(-1)[known] - batch.counts[known]).square().sum() / known.sum().clamp(1)
        hidden = self.whisper.model.decoder(input_ids=batch.inputs, encoder_hidden_states=sound, use_cache=False)[0]
        logits = self.whisper.proj_out(hidden)
        logits = torch.cat([logits[..., :-1], logits[..., -1:] + unused_offset()], -1)
        text = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
        look = self._look(0, batch.spans[:, :-1]) + self._look(1, batch.spans[:, 1:])
        loss = text + frame + 0.3 * ahead + 0.4 * look
        parts = {"text": text.item(), "frame": frame.item(), "ahead": ahead.item(), "look": look.item()}
        if batch.unplaced:
            log = heard[batch.unplaced].log_softmax(-1).transpose(0, 1)
            targets = torch.tensor([word for target in batch.targets for word in target])
            sizes = torch.tensor([len(target) for target in batch.targets])
            ctc = F.ctc_loss(log, targets, torch.tensor(batch.lengths), sizes, zero_infinity=True)
            loss = loss + 0.5 * ctc * len(batch.unplaced) / len(batch.mel)
            parts["ctc"] = ctc.item()
        right = logits.argmax(-1) == batch.labels
        parts["right"] = (right.sum() / (batch.labels != IGNORE).sum()).item()
        return loss, parts

    def _look(self, layer: int, spans: torch.Tensor) -> torch.Tensor:
        """How much of the guided heads' attention falls outside the word."""
        weights = self.looks[layer]
        at = torch.arange(weights.shape[-1])
        inside = (at >= spans[..., :1] - 4) & (at < spans[..., 1:] + 4)
        held = (weights * inside[:, None]).sum(-1).clamp(min=1e-5).log()
        wanted = (spans[..., 1] > 0)[:, None].expand_as(held)
        return -(held * wanted).sum() / wanted.sum().clamp(1)


def rate(progress: float, steps: int, top: float, warm: int = 100) -> float:
    """Warm up over some steps, then fall along a cosine to nothing."""
    fall = 0.5 * (1 + torch.cos(torch.tensor(min(progress, 1.0) * torch.pi)).item())
    return max(top * min(1.0, steps / warm) * fall, 1e-6)


def work(rank: int, workers: int, args: argparse.Namespace) -> None:
    """One of the training processes: each has one thread and its own batches, all have the same weights.

    On two cores this is faster than one process with two threads, which wait for each other in every operation.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=args.meet, rank=rank, world_size=workers)
    torch.manual_seed(args.seed)
    learner = Learner()
    if args.resume:
        learner.load_state_dict(torch.load(args.resume, weights_only=True))
    grouped = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(grouped, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.time()

    def progress() -> float:
        return args.begin + (1 - args.begin) * (time.time() - started) / (60 * args.minutes)

    composer = Composer(Bank.load(args.bank), progress, 1000 * args.seed + rank)
    loader = DataLoader(composer, batch_size=None, num_workers=1, prefetch_factor=4, multiprocessing_context="fork")
    saved, sums, count = started, {}, 0
    for steps, batch in enumerate(loader, 1):
        loss, parts = learner(batch)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        flat = torch.cat([p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in grouped])
        flat = torch.cat([flat, torch.tensor([progress()])])
        torch.distributed.all_reduce(flat)
        flat /= workers
        done = flat[-1].item()  # the same for all, so that all take the same step and stop at the same one
        for p, grad in zip(grouped, flat[:-1].split([p.numel() for p in grouped]), strict=True):
            p.grad = grad.view_as(p).clone()
        for group in optimizer.param_groups:
            group["lr"] = rate(done, steps, args.lr, 30 if args.resume else 100)
        nn.utils.clip_grad_norm_(grouped, 1.0)
        optimizer.step()
        count += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
        if rank == 0 and steps % 50 == 0:
            means = "  ".join(f"{name} {value / count:.3f}" for name, value in sums.items())
            print(f"{time.time() - started:6.0f} s  step {steps}  {means}", flush=True)
            sums, count = {}, 0
        if rank == 0 and (done >= 1 or time.time() - saved > 120):
            torch.save({"model": learner.whisper.state_dict(), "steps": steps}, args.out / "part.pt")
            (args.out / "part.pt").replace(args.out / "last.pt")
            torch.save(learner.state_dict(), args.out / "learner.pt")
            saved = time.time()
        if done >= 1:
            break


def main() -> None:
    """Train for a number of minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=42.0)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--resume", type=Path, help="learner.pt of an earlier run")
    parser.add_argument("--begin", type=float, default=0.0, help="where in the schedule to begin, 0 to 1")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        args.meet = f"file://{folder}/meet"
        torch.multiprocessing.spawn(work, (args.workers, args), args.workers)


if __name__ == "__main__":
    main()
