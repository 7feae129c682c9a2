//! What lab03's TC programs and their loader share.
//!
//! All of it is `no_std`, free of maps and of aya, and runs on the host as it does in the kernel.

#![no_std]
