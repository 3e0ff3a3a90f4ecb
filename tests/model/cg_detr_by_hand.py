"""CG-DETR from its released tensors, written out pair by pair in float64; nothing of the package is used.

`forward` is the network in evaluation mode, `losses` every unweighted term. `released` asks for the faults
of the released code; without it padding and the other pairs of the batch do not exist. `detach` stands
where the released code holds a gradient back.

Letters: L padded frames, K = 45 or so dummies and T padded tokens, H width. Masks are True where real.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

State = dict[str, Tensor]
HEADS = 8


@dataclass
class Pairs:
    """A padded batch: features (TEF first, as released), lengths, recordings and labels."""

    audio: Tensor  # [B, L, 2 + D]
    text: Tensor  # [B, T, E]
    frames: list[int]
    tokens: list[int]
    spans: list[Tensor]  # [M, 2] each, (centre, width)
    inside: Tensor  # [B, L] 0 or 1
    positives: list[list[int]]
    negatives: list[list[int]]
    other: list[int | None]  # whose sentence is mismatched


# --- bricks ------------------------------------------------------------------------------------------


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def norm(s: State, name: str, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / ((x * x).mean(-1, keepdim=True) + 1e-5).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]


def project(s: State, name: str, x: Tensor) -> Tensor:
    first = linear(s, f"{name}.0.net.1", norm(s, f"{name}.0.LayerNorm", x)).clamp(min=0)
    return linear(s, f"{name}.1.net.1", norm(s, f"{name}.1.LayerNorm", first))


def perceptron(s: State, name: str, x: Tensor, depth: int) -> Tensor:
    for i in range(depth):
        x = linear(s, f"{name}.layers.{i}", x)
        x = x.clamp(min=0) if i < depth - 1 else x
    return x


def feedforward(s: State, at: str, x: Tensor) -> Tensor:
    x = linear(s, f"{at}.linear1", x)
    return linear(s, f"{at}.linear2", torch.where(x > 0, x, x * s[f"{at}.activation.weight"]))


def per_head(x: Tensor) -> list[Tensor]:
    return list(x.split(x.shape[-1] // HEADS, dim=-1))


def softmax(scores: Tensor, seen: Tensor) -> Tensor:
    e = torch.where(seen, (scores - scores.masked_fill(~seen, -math.inf).max(-1, keepdim=True)[0]).exp(), 0.0)
    return e / e.sum(-1, keepdim=True)


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """[n, .], [m, .], [m, .], [m] bool → [n, .]."""
    found = []
    for qh, kh, vh in zip(per_head(q), per_head(k), per_head(v), strict=True):
        found.append(softmax(qh @ kh.T / math.sqrt(qh.shape[-1]), seen[None]) @ vh)
    return torch.cat(found, dim=-1)


def encoder(s: State, name: str, layers: int, x: Tensor, position: Tensor, seen: Tensor) -> Tensor:
    for i in range(layers):
        at = f"{name}.layers.{i}"
        rows = s[f"{at}.self_attn.in_proj_weight"].chunk(3), s[f"{at}.self_attn.in_proj_bias"].chunk(3)
        q, k, v = (y @ w.T + b for y, w, b in zip((x + position, x + position, x), *rows, strict=True))
        x = norm(s, f"{at}.norm1", x + linear(s, f"{at}.self_attn.out_proj", attention(q, k, v, seen)))
        x = norm(s, f"{at}.norm2", x + feedforward(s, at, x))
    return x


def sine(angle: Tensor, width: int) -> Tensor:
    out = torch.zeros(*angle.shape, width, dtype=torch.float64)
    for i in range(width // 2):
        out[..., 2 * i] = torch.sin(angle / 10000 ** (2 * i / width))
        out[..., 2 * i + 1] = torch.cos(angle / 10000 ** (2 * i / width))
    return out


def logit(x: Tensor) -> Tensor:
    return torch.log(x.clamp(1e-3, 1) / (1 - x).clamp(1e-3, 1))


# --- the network -------------------------------------------------------------------------------------


@dataclass
class Projected:
    """What does not depend on which sentence a recording is paired with."""

    audio: Tensor  # [B, L, H]
    position: Tensor  # [B, L, H]
    text: Tensor  # [B, T, H]
    dummies: Tensor  # [B, K, H]


def projected(s: State, data: Pairs) -> Projected:
    types = s["token_type_embeddings.weight"]
    audio = project(s, "input_vid_proj", data.audio.double()) + types[1]
    text = project(s, "input_txt_proj", data.text.double()) + types[0]
    length, width = audio.shape[1:]
    own, place = s["dummy_rep_token"], s["dummy_rep_pos"]
    dummies, positions = [], []
    for words, n, m in zip(text, data.frames, data.tokens, strict=True):
        count = torch.arange(1, length + 1, dtype=torch.float64).clamp(max=n)
        positions.append(sine(2 * math.pi * count / (n + 1e-6), width))
        x, pos = torch.cat((own, words)), torch.cat((place, torch.zeros_like(words)))
        seen = torch.arange(len(x)) < len(own) + m
        dummies.append(encoder(s, "txtproj_encoder", 2, x, pos, seen)[: len(own)])
    return Projected(audio, torch.stack(positions), text, torch.stack(dummies))


def passed(
    s: State, p: Projected, data: Pairs, rows: list[int], sentences: list[int], released: bool
) -> list[dict[str, Tensor]]:
    """Recordings `rows` with sentences `sentences`: weights W, memory, global vector and saliency of each."""
    count = p.dummies.shape[1]
    width = p.audio.shape[2]
    found = []
    for index, (b, c) in enumerate(zip(rows, sentences, strict=True)):
        n, x, position = data.frames[b], p.audio[b], p.position[b]
        key = torch.cat((p.dummies[c] + s["dummy_rep_pos"], p.text[c]))
        length, size = len(x), len(key)
        seen = (torch.arange(size) < count + data.tokens[c]).expand(HEADS, length, size).clone()
        if released:
            for h, t, j in itertools.product(range(HEADS), range(length), range(size)):
                tiled = (index * HEADS + h) % len(rows)
                if t >= data.frames[rows[tiled]] and j >= count + data.tokens[sentences[tiled]]:
                    seen[h, t, j] = False
        audio, weights = x, []
        for i in range(2):
            at = f"transformer.t2v_encoder.layers.{i}"
            heads, parts = [], []
            for h, (q, k, v) in enumerate(
                zip(per_head(audio + position), per_head(key), per_head(p.text[c]), strict=True)
            ):
                share = softmax(q @ k.T / math.sqrt(width / HEADS), seen[h])
                heads.append(share)
                parts.append(share[:, count:] @ v)
            weights.append(torch.stack(heads).mean(0))
            audio = across(s, at, audio, linear(s, f"{at}.self_attn.out_proj", torch.cat(parts, dim=-1)))
        attended = (weights[0] + weights[1]) / 2

        context = x[:n].mean(0).detach()
        bank = s["global_rep_token"]
        importance = attended[:n, count:].sum(1).detach()
        chosen = torch.zeros(len(bank), dtype=torch.float64)
        for t in range(n):
            away = x[t] - context
            like = torch.stack([away @ g / (away.norm() * g.norm()) for g in bank]).softmax(0)
            chosen += importance[t] / importance.sum() * like
        best = chosen.detach().argsort(descending=True)[:2].tolist()
        token = sum((chosen[i] * bank[i] for i in best), start=context)[None]
        for i in range(2):
            at = f"transformer.t2v_encoder.layers.{i}"
            token = across(s, at, token, s[f"{at}.self_attn.out_proj.bias"][None])

        sequence = torch.cat((token, audio))
        places = torch.cat((s["global_rep_pos"], position))
        out = encoder(s, "transformer.encoder", 3, sequence, places, torch.arange(length + 1) < n + 1)
        memory = out[1:] + out[0]
        product = linear(s, "saliency_proj1", memory) @ linear(s, "saliency_proj2", out[0])
        found.append({"W": attended, "memory": memory, "saliency": product / math.sqrt(width)})
    return found


def across(s: State, at: str, audio: Tensor, seen: Tensor) -> Tensor:
    x = audio + seen
    return norm(s, f"{at}.norm2", x + feedforward(s, at, norm(s, f"{at}.norm1", x)))


def decoded(s: State, memory: Tensor, position: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Logits [3, Q, 2] and spans [3, Q, 2]."""
    d = "transformer.decoder"
    width = memory.shape[1]
    reference = s["query_embed.weight"].sigmoid()
    content = torch.zeros(len(reference), width, dtype=torch.float64)
    logits, spans = [], []
    real, everyone = torch.arange(len(memory)) < n, torch.ones(len(reference), dtype=torch.bool)
    for i in range(3):
        at = f"{d}.layers.{i}"
        start = reference.detach() if i else reference
        centre, length = start.unbind(-1)
        code = torch.cat([sine(2 * math.pi * x, width // 2) for x in (centre, length)], dim=-1)
        place = perceptron(s, f"{d}.ref_point_head", code, 2)
        scale = perceptron(s, f"{d}.query_scale", content, 2) if i else 1.0
        code = code * scale * perceptron(s, f"{d}.ref_anchor_head", content, 2).sigmoid() / length[:, None]
        q = linear(s, f"{at}.sa_qcontent_proj", content) + linear(s, f"{at}.sa_qpos_proj", place)
        k = linear(s, f"{at}.sa_kcontent_proj", content) + linear(s, f"{at}.sa_kpos_proj", place)
        seen = attention(q, k, linear(s, f"{at}.sa_v_proj", content), everyone)
        x = norm(s, f"{at}.norm1", content + linear(s, f"{at}.self_attn.out_proj", seen))
        q, k = linear(s, f"{at}.ca_qcontent_proj", x), linear(s, f"{at}.ca_kcontent_proj", memory)
        k_place = linear(s, f"{at}.ca_kpos_proj", position)
        if i == 0:
            q, k = q + linear(s, f"{at}.ca_qpos_proj", place), k + k_place
        code = linear(s, f"{at}.ca_qpos_sine_proj", code)
        q, k = (
            torch.cat(
                [torch.cat(pair, dim=-1) for pair in zip(per_head(a), per_head(b), strict=True)], dim=-1
            )
            for a, b in ((q, code), (k, k_place))
        )
        seen = attention(q, k, linear(s, f"{at}.ca_v_proj", memory), real)
        x = norm(s, f"{at}.norm2", x + linear(s, f"{at}.cross_attn.out_proj", seen))
        content = norm(s, f"{at}.norm3", x + feedforward(s, at, x))
        state = norm(s, f"{d}.norm", content)
        logits.append(linear(s, "class_embed", state))
        spans.append((perceptron(s, "span_embed", state, 3) + logit(reference)).sigmoid())
        reference = (perceptron(s, f"{d}.bbox_embed", content, 3) + logit(start)).sigmoid()
    return torch.stack(logits), torch.stack(spans)


def forward(s: State, data: Pairs, released: bool) -> dict[str, Any]:
    """The network and, for the losses, its mismatched pairs and training-only tokens; `s` in float64."""
    p = projected(s, data)
    every = list(range(len(data.frames)))
    whole = passed(s, p, data, every, every, released)
    rows = [b for b in every if data.other[b] is not None]
    sentences = [c for c in data.other if c is not None]
    found = [decoded(s, x["memory"], p.position[b], data.frames[b]) for b, x in enumerate(whole)]
    return {
        "logits": torch.stack([logits for logits, _ in found], dim=1),
        "spans": torch.stack([spans for _, spans in found], dim=1),
        "saliency": torch.stack([x["saliency"] for x in whole]),
        "W": torch.stack([x["W"] for x in whole]),
        "mismatched": dict(zip(rows, passed(s, p, data, rows, sentences, released), strict=True)),
        "dummies": p.dummies,
        "prompts": s["global_rep_token"],
        "learned": [learned(s, p, data, b) for b in every],
    }


def learned(s: State, p: Projected, data: Pairs, b: int) -> dict[str, Tensor]:
    """Moment and sentence tokens of one pair, and the products of its frames and words."""
    n, m, inside = data.frames[b], data.tokens[b], data.inside[b] > 0
    real = torch.arange(len(inside)) < n
    first = torch.ones(1, dtype=torch.bool)

    def read(name: str, token: str, rows: Tensor, place: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((s[f"{token}_rep_token"][None], rows))
        place = torch.cat((s[f"{token}_rep_pos"][None], place))
        out = encoder(s, name, 1, x, place, torch.cat((first, seen)))
        return out[0], out[1:]

    moments = "transformer.mcls_encoder"
    mu, frames = read(moments, "moment", p.audio[b], p.position[b], real & inside)
    outside, others = read(moments, "moment", p.audio[b], p.position[b], real & ~inside)
    text, dummies = p.text[b], p.dummies[b]
    sentence, words = read("scls_encoder", "sent", text, torch.zeros_like(text), torch.arange(len(text)) < m)
    all_of_them = torch.ones(len(dummies), dtype=torch.bool)
    empty, dummy_words = read("scls_encoder", "sent", dummies, s["dummy_rep_pos"], all_of_them)
    return {
        "mu": mu,
        "outside": outside,
        "sentence": sentence,
        "empty": empty,
        "S": frames @ torch.cat((dummy_words, words)).T,
        "products": torch.where(inside[:, None], frames, others) @ mu,
    }


# --- the losses --------------------------------------------------------------------------------------


def log(x: Tensor) -> Tensor:
    return torch.log(x).clamp(min=-100)


def hinge(z: Tensor, data: Pairs) -> Tensor:
    total = z.new_zeros(())
    for b, (inside, outside) in enumerate(zip(data.positives, data.negatives, strict=True)):
        for i, o in zip(inside, outside, strict=True):
            total += (0.2 + z[b, o] - z[b, i]).clamp(min=0)
    return total / (2 * len(z)) * 2


def rank(curve: Tensor, other: Tensor | None, inside: Tensor, n: int) -> Tensor:
    """-log of the softmax at the inside frames, their mean, / 12; over the real frames of both curves."""
    both = curve[:n] if other is None else torch.cat((curve[:n], other[:n]))
    scores = both / 0.5
    scores = scores - scores.max()
    log_p = scores[:n] - torch.log(scores.exp().sum() + 1e-6)
    return -(log_p * inside[:n]).sum() / (inside.sum() + 1e-6) / 12


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean() if values else torch.zeros((), dtype=torch.float64)


def losses(out: dict[str, Any], data: Pairs, released: bool) -> dict[str, Tensor]:
    """Every raw term; `span`, `giou` and `label` have one number per decoder layer."""
    every, real = range(len(data.frames)), torch.zeros_like(data.inside, dtype=torch.bool)
    for b, n in enumerate(data.frames):
        real[b, :n] = True
    count = out["dummies"].shape[1]
    inside = data.inside.double()
    other = out["mismatched"]
    paired, single = [b for b in every if b in other], [b for b in every if b not in other]
    one = len(single) == 1 and bool(paired) and released

    # saliency
    z = out["saliency"]
    saliency = hinge(z, data)
    saliency += mean([rank(z[b], other[b]["saliency"], inside[b], data.frames[b]) for b in paired])
    if not one:
        saliency += mean([rank(z[b], None, inside[b], data.frames[b]) for b in single])
    saliency += mean([-log(1 - other[b]["saliency"][: data.frames[b]].sigmoid()).sum() for b in paired])

    # attention mass
    v = out["W"][..., count:].sum(-1).clamp(0, 1)
    v_other = {b: x["W"][:, count:].sum(-1).clamp(0, 1) for b, x in other.items()}
    mass = hinge(v, data)
    mass += mean([rank(v[b], v_other[b], inside[b], data.frames[b]) for b in paired])
    if not (released and paired):
        mass += mean([rank(v[b], None, inside[b], data.frames[b]) for b in single])
    wrong = -(inside * log(v) + (1 - inside) * log(1 - v))
    mass += wrong.mean() if released else wrong[real].mean()
    mass += mean([-log(1 - v_other[b][: data.frames[b]]).sum() for b in paired])

    # moments and sentences
    tokens = {
        key: torch.stack([x[key] for x in out["learned"]]) for key in ("mu", "outside", "sentence", "empty")
    }
    unit = {key: x / x.norm(dim=-1, keepdim=True) for key, x in tokens.items()}
    rows, empty = (
        torch.cat((unit["mu"] @ unit[key].T, unit["outside"] @ unit[key].T), dim=1)
        for key in ("sentence", "empty")
    )
    align = mean([-rows[b].log_softmax(0)[b] for b in every])
    for b in every:
        log_p = empty[b].log_softmax(0)
        if released:
            align -= log_p[1 if b == 0 else 0] / len(every)
        else:
            align -= (
                sum(log_p[c] for c in range(2 * len(every)) if c != b) / (2 * len(every) - 1) / len(every)
            )
    y = torch.stack([x["products"] for x in out["learned"]])
    if released:  # the sigmoid is rounded to float32 before its logarithm
        p = y.float().sigmoid()
        cost = -(inside * log(p).double() + (1 - inside) * log(1 - p).double())
        align += (cost * real).sum() / real.numel()
    else:
        cost = -(
            inside * torch.nn.functional.logsigmoid(y) + (1 - inside) * torch.nn.functional.logsigmoid(-y)
        )
        align += cost[real].mean()

    # distillation
    distilled = []
    for b in every:
        keys = out["W"].shape[2] if released else count + data.tokens[b]
        for t in range(data.frames[b]):
            if inside[b, t]:
                q = out["learned"][b]["S"][t, :keys].softmax(0).detach()
                distilled.append((q * (torch.log(q) - torch.log(out["W"][b, t, :keys] + 1e-6))).mean())

    found = {
        "saliency": saliency,
        "attention-saliency": mass,
        "ms-align": align,
        "distill": mean(distilled),
        "orthogonal-dummies": mean([apart(d) for d in out["dummies"]]),
        "orthogonal-prompts": apart(out["prompts"]),
    }
    return found | windows(out, data)


def apart(rows: Tensor) -> Tensor:
    unit = rows / rows.norm(dim=-1, keepdim=True)
    total = sum((unit[i] @ unit[j].detach()).abs() for i, j in itertools.permutations(range(len(rows)), 2))
    assert isinstance(total, Tensor)
    return total / len(rows) ** 2


def windows(out: dict[str, Any], data: Pairs) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {"span": [], "giou": [], "label": []}
    for logits, spans in zip(out["logits"], out["spans"], strict=True):
        l1, overlap, label = [], [], []
        for b, wanted in enumerate(data.spans):
            wanted = wanted.double()
            cost = torch.stack([torch.stack([pair(q, w)[0] for w in wanted]) for q in spans[b]])
            cost -= 4 * logits[b].softmax(-1)[:, :1]
            queries, moments = linear_sum_assignment(cost.detach().numpy())
            for q, w in zip(queries, moments, strict=True):
                l1.append((spans[b, q] - wanted[w]).abs().mean())
                overlap.append(1 - pair(spans[b, q], wanted[w])[1])
            for i, row in enumerate(logits[b].log_softmax(-1)):
                label.append(-row[0] if i in queries else -0.1 * row[1])
        for name, values in (("span", l1), ("giou", overlap), ("label", label)):
            found[name].append(mean(values))
    return {name: torch.stack(values) for name, values in found.items()}


def pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Cost of a window for a moment without its class, and their generalised IoU."""
    (s1, e1), (s2, e2) = ((x[0] - x[1] / 2, x[0] + x[1] / 2) for x in (a, b))
    inter = (torch.minimum(e1, e2) - torch.maximum(s1, s2)).clamp(min=0)
    union = (e1 - s1) + (e2 - s2) - inter
    hull = torch.maximum(e1, e2) - torch.minimum(s1, s2)
    giou = inter / union - (hull - union) / hull
    return 10 * (a - b).abs().sum() - giou, giou
