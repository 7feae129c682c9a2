//! Compiles the enforcer's programs.

fn main() {
    ebpf_build::compile("lab06-full-enforcer-ebpf", "ebpf");
}
