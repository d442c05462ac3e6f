"""A CPU spec that is the same on every machine that runs the tests."""

from torchroller.device import GB_S, DeviceSpec, GiB, KiB, MemLevel, MiB, Peak


def zen5_spec(units: int = 2) -> DeviceSpec:
    """Two Zen 5 cores as measured: 266 GFLOP/s a core, 45 GB/s of DRAM, 48 KiB L1, 1 MiB L2, 32 MiB L3."""
    hz, peak = 4.15e9, 266e9 * units
    return DeviceSpec(
        name="Zen 5" if units > 1 else "Zen 5, 1 core",
        kind="cpu",
        arch="znver5",
        units=units,
        levels=(
            MemLevel("DRAM", 24 * GiB, 45 * GB_S, 64, False, 9e-8, 28 * GB_S, ramp_bytes=1280),
            MemLevel("L3", 32 * MiB, 10 * hz * units, 64, False, 1.5e-8, 10 * hz, ramp_bytes=256),
            MemLevel("L2", 1 * MiB, 48 * hz, 64, True, 4e-9, 48 * hz),
            MemLevel("L1", 48 * KiB, 128 * hz, 64, True, 1.5e-9, 128 * hz),
        ),
        peaks=(
            Peak("float64", peak / 2),
            Peak("float32", peak),
            Peak("float16", peak),
            Peak("bfloat16", peak, 2 * peak, (1, 16, 2)),
            Peak("int8", peak, 4 * peak, (1, 16, 4)),
        ),
        warp_size=1,
        max_warps=1,
        unit_warps=1,
        unit_partitions=1,
        unit_registers=512,
        thread_registers=512,
        program_scratch_bytes=0,
        unit_scratch_bytes=0,
        accumulator_bytes=0,
        stages=(1,),
        vector_bytes=64,
        micro_kernels=((4, 4), (8, 2), (2, 8), (1, 8), (8, 1)),
        launch_s=3e-7,
        fork_s=7e-7,
        program_s=8e-9,
        step_s=2e-8,
        exposed=0.3,
        skew=0.15,
        source="measured",
    )
