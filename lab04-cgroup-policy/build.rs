//! Compiles lab04's cgroup programs.

fn main() {
    ebpf_build::compile("lab04-cgroup-policy-ebpf", "ebpf");
}
