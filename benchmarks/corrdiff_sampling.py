"""Seconds per CorrDiff sample of a large domain, from one timed patch and the solver around an empty network.

    python benchmarks/corrdiff_sampling.py [--size small] [--shape 1600 2400] [--channels 24] [--patch 256] [--threads 2]

The network is timed on one patch; everything else (noise, solver, cutting and fusing patches) on the whole domain with a
network that returns zeros at once. ``--whole`` checks the sum of both by a sample. Weights are random: only times are
meaningful. Times are processor seconds over threads, so that other work on the machine does not count.
"""

import argparse
import resource
import time
from dataclasses import replace

import torch
from torch import nn

from xscalemixer.nn.corrdiff import Condition, CorrDiffNetworkConfig, ResidualDiffusion
from xscalemixer.nn.sampling import SolverConfig
from xscalemixer.nn.tiling import Tiling, TilingConfig


class Empty(nn.Module):
    """Stands in for the U-Net and costs nothing."""

    def __init__(self, unet: nn.Module, outputs: int):
        super().__init__()
        self.last, self.outputs = unet.last, outputs

    def forward(self, x, noise, scalars):
        """(P, inputs, h, w) -> zeros (P, outputs, h, w)."""
        return x.new_zeros(()).expand(x.shape[0], self.outputs, *x.shape[2:])


def seconds(function, repeats: int, threads: int) -> float:
    """Least processor seconds per thread of one call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times) / threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "paper", "china"), default="small")
    parser.add_argument("--shape", type=int, nargs=2, default=(1600, 2400), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--channels", type=int, default=24, help="coarse channels and targets")
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--fast", action="store_true", help="nine Euler steps")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--whole", action="store_true", help="make a whole sample too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    shape, channels = tuple(options.shape), options.channels
    config = getattr(CorrDiffNetworkConfig, options.size)()
    positions = replace(config.positions, shape=shape) if config.positions.kind != "none" else config.positions
    config = replace(config, coarse=channels, outputs=channels, statics=2, shared=(), positions=positions)
    network = ResidualDiffusion(config).eval()
    solver = SolverConfig.fast() if options.fast else SolverConfig()
    tiling = TilingConfig(patch=(options.patch, options.patch), overlap=options.overlap)
    patches = len(Tiling(tiling, shape))

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
        x = torch.randn(1, network.unet.inputs, options.patch, options.patch)
        patch = seconds(lambda: network.unet(x, torch.zeros(1)), 4, options.threads)
        unet, network.unet = network.unet, Empty(network.unet, channels)
        condition = Condition(torch.randn(1, channels + 2, *shape), mean=torch.randn(1, channels, *shape))
        short = [SolverConfig(method=solver.method, steps=steps) for steps in (2, 3)]
        run = lambda s: seconds(lambda: network.sample(condition, [0], solver=s, tiling=tiling), 1, options.threads)
        around = [run(s) for s in short]
        network.unet = unet
        whole = run(solver) if options.whole else None

    per_call = (around[1] - around[0]) / (short[1].calls - short[0].calls)
    inside = patch * patches * solver.calls
    outside = around[0] + per_call * (solver.calls - short[0].calls)
    total, pixels = inside + outside, shape[0] * shape[1] / 1e6
    rows = {
        "domain": f"{shape[0]} x {shape[1]} cells, {channels} channels",
        "network": f"{options.size}, {sum(p.numel() for p in ResidualDiffusion(config).parameters()) / 1e6:.2f} M parameters",
        "patches": f"{patches} of {options.patch} x {options.patch}, overlap at least {options.overlap}",
        "denoiser calls": f"{solver.calls}, {patches * solver.calls} patches in all",
        "one patch": f"{patch:.2f} s on {options.threads} threads",
        "one sample (estimated)": f"{total:.0f} s = {total / 3600:.2f} h, {total / pixels:.0f} s per million cells",
        **({} if whole is None else {"one sample (measured)": f"{whole:.0f} s"}),
        "outside of the network": f"{outside:.0f} s, {outside / total:.1%}",
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB",
    }
    for name, value in rows.items():
        print(f"{name:24}{value}")


if __name__ == "__main__":
    main()
