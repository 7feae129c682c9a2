//! Compiles lab02's XDP program.

fn main() {
    ebpf_build::compile("lab02-xdp-firewall-ebpf", "ebpf");
}
