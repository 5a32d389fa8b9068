//! The adapters of this machine, and what each can do.

use wgpu::{DeviceType, Features};

/// A GPU, or software that stands in for one.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(super) inner: wgpu::Adapter,
    info: wgpu::AdapterInfo,
}

/// Returns the adapters: discrete GPUs first, then integrated and virtual ones, software last.
pub fn adapters() -> Vec<Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut adapters: Vec<_> = found.into_iter().map(|inner| Adapter { info: inner.get_info(), inner }).collect();
    adapters.retain(|adapter| adapter.missing().is_none());
    // Where a GPU has two drivers, the first stays: DX12 after Vulkan.
    adapters.sort_by_key(|adapter| adapter.rank());
    adapters
}

/// Returns false if there is certainly no GPU, without loading a driver.
pub fn may_have_gpu() -> bool {
    // A driver that is loaded in vain may take a while, and may complain on stderr.
    let nodes = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd"];
    !cfg!(target_os = "linux") || nodes.iter().any(|node| std::path::Path::new(node).exists())
}

/// Shared memory of a workgroup that the kernels need, in bytes.
const WORKGROUP_BYTES: u32 = 20 << 10;

impl Adapter {
    fn rank(&self) -> u32 {
        match self.info.device_type {
            DeviceType::DiscreteGpu => 0,
            DeviceType::IntegratedGpu => 1,
            DeviceType::VirtualGpu => 2,
            DeviceType::Other => 3,
            DeviceType::Cpu => 4,
        }
    }

    /// Returns the part that the kernels need and this adapter lacks.
    fn missing(&self) -> Option<&'static str> {
        let limits = self.inner.limits();
        if !self.inner.features().contains(Features::IMMEDIATES) || limits.max_immediate_size < 128 {
            return Some("immediates");
        }
        let wide = limits.max_storage_buffers_per_shader_stage >= 9
            && limits.max_compute_invocations_per_workgroup >= 256
            && limits.max_compute_workgroup_size_x >= 256;
        (!wide || limits.max_compute_workgroup_storage_size < WORKGROUP_BYTES).then_some("workgroups of 256")
    }

    /// Name of the hardware.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// `discrete`, `integrated`, `virtual`, `other` or `software`.
    pub fn kind(&self) -> &'static str {
        match self.info.device_type {
            DeviceType::DiscreteGpu => "discrete",
            DeviceType::IntegratedGpu => "integrated",
            DeviceType::VirtualGpu => "virtual",
            DeviceType::Other => "other",
            DeviceType::Cpu => "software",
        }
    }

    /// True for software that stands in for a GPU, on the CPU.
    pub fn is_software(&self) -> bool {
        self.info.device_type == DeviceType::Cpu
    }

    /// True for a GPU with memory of its own.
    pub fn is_discrete(&self) -> bool {
        self.info.device_type == DeviceType::DiscreteGpu
    }

    /// `vulkan`, `metal` or `dx12`.
    pub fn backend(&self) -> &'static str {
        self.info.backend.to_str()
    }

    /// Name and version of the driver.
    pub fn driver(&self) -> String {
        let text = [self.info.driver.trim(), self.info.driver_info.trim()].join(" ");
        text.trim().to_owned()
    }

    /// Largest part of a buffer that a kernel can be given, in bytes.
    pub fn binding_bytes(&self) -> u64 {
        self.inner.limits().max_storage_buffer_binding_size
    }

    /// True if kernels can multiply in f16.
    pub fn has_f16(&self) -> bool {
        self.inner.features().contains(Features::SHADER_F16)
    }

    /// True if the threads of a subgroup can exchange values.
    pub fn has_subgroups(&self) -> bool {
        self.inner.features().contains(Features::SUBGROUP)
    }

    /// True if it has units for products of small matrices.
    pub fn has_matrix_units(&self) -> bool {
        self.inner.features().contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
    }
}
