//! x
pub(crate) fn sweep_once() {}
