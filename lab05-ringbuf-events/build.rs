//! Compiles lab05's eBPF programs.

fn main() {
    ebpf_build::compile("lab05-ringbuf-events-ebpf", "ebpf");
}
