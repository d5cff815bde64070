"""Cross-entropy of logits and integer labels, through a log-softmax that cannot overflow."""

from tinyres.kernels.arrays import Array, array_module


def cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    xp = array_module(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    losses = -log_probs[xp.arange(len(labels)), labels]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * log_probs.mean(axis=1)
    return losses, log_probs


def cross_entropy_mean(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    losses, log_probs = cross_entropy(logits, labels, label_smoothing)
    return array_module(logits).asarray(losses.sum() / losses.dtype.type(len(losses))), log_probs


def cross_entropy_mean_backward(dloss: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    dlosses = array_module(log_probs).broadcast_to(dloss / log_probs.dtype.type(len(labels)), labels.shape)
    return cross_entropy_backward(dlosses, log_probs, labels, label_smoothing)


def count_wrong(logits: Array, labels: Array, total: Array) -> None:
    total += (logits.argmax(axis=1) != labels).sum()


def cross_entropy_backward(dlosses: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
    xp = array_module(log_probs)
    dlogits = xp.exp(log_probs)
    if label_smoothing:
        dlogits -= label_smoothing / log_probs.shape[1]
    dlogits[xp.arange(len(labels)), labels] -= 1 - label_smoothing
    dlogits *= dlosses[:, None]
    return dlogits
