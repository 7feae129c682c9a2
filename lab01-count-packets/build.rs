//! Compiles lab01's XDP program.

fn main() {
    ebpf_build::compile("lab01-count-packets-ebpf", "ebpf");
}
