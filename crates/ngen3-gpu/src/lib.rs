//! GPU engine, on `wgpu`.

mod device;
mod kernels;
