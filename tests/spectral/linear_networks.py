"""Networks whose state Jacobian is a given matrix at every step."""

import torch

import kpops


def linear_rnn(W, n_steps, n_trials=1, dtype=torch.float64, engine="auto"):
    """h' = relu(W h + x) at states that stay positive, so that A = W."""
    size = len(W)
    rnn = torch.nn.RNN(size, size, nonlinearity="relu", bias=False, batch_first=True).to(dtype)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.as_tensor(W, dtype=torch.float64))
        rnn.weight_ih_l0.copy_(torch.eye(size))
    states = torch.ones(n_trials, n_steps + 1, size, dtype=dtype)
    inputs = states[:, 1:] - states[:, :-1] @ rnn.weight_hh_l0.T.detach()
    return kpops.linearize(rnn, inputs, h0=states[:, 0], engine=engine)
