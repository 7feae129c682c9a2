//! Compiles lab03's TC programs.

fn main() {
    ebpf_build::compile("lab03-tc-egress-ebpf", "ebpf");
}
