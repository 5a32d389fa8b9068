//! [`Recorder`]: records kernels in order, and submits them.

use super::buffer::View;
use super::context::Context;
use super::template::Constants;

/// Kernels after which the device starts, while more are recorded. A driver may stop a device that works on one submission for
/// seconds.
const SUBMIT_EVERY: usize = 128;

/// A kernel and its constants.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    /// Its name, which no other source has.
    pub name: &'static str,
    /// WGSL, as `template.rs` expands it.
    pub source: &'a str,
    /// Constants in front of the source.
    pub constants: &'a Constants,
}

/// Part of a buffer, for one of a kernel's bindings.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    view: View<'a>,
    writes: bool,
}

/// Binds a part of a buffer that the kernel only reads.
pub fn read(view: View<'_>) -> Binding<'_> {
    Binding { view, writes: false }
}

/// Binds a part of a buffer that the kernel writes.
pub fn write(view: View<'_>) -> Binding<'_> {
    Binding { view, writes: true }
}

/// Commands being recorded. Dropping it submits them.
pub struct Recorder<'a> {
    /// The device.
    pub context: &'a Context,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    recorded: usize,
}

impl<'a> Recorder<'a> {
    /// Starts recording.
    pub fn new(context: &'a Context) -> Self {
        Self { context, encoder: None, pass: None, recorded: 0 }
    }

    /// Records a kernel. `immediates` are its parameters, `groups` its workgroups along x, y and z.
    pub fn dispatch(&mut self, kernel: Kernel<'_>, bindings: &[Binding<'_>], immediates: &[u32], groups: [usize; 3]) {
        if groups.contains(&0) {
            return;
        }
        let writes: Vec<bool> = bindings.iter().map(|binding| binding.writes).collect();
        let Kernel { name, source, constants } = kernel;
        let pipeline = self.context.pipeline(name, source, constants, &writes, immediates.len());
        let entries: Vec<_> = bindings
            .iter()
            .enumerate()
            .map(|(binding, Binding { view, .. })| wgpu::BindGroupEntry {
                binding: binding as u32,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &view.buffer.inner,
                    offset: 4 * view.offset as u64,
                    size: std::num::NonZeroU64::new(4 * view.len.max(1) as u64),
                }),
            })
            .collect();
        let group = self.context.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(name),
            layout: &pipeline.layout,
            entries: &entries,
        });
        let pass = self.pass();
        pass.set_pipeline(&pipeline.inner);
        pass.set_bind_group(0, &group, &[]);
        pass.set_immediates(0, bytemuck::cast_slice(immediates));
        let [x, y, z] = groups.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        pass.dispatch_workgroups(x, y, z);
        self.recorded += 1;
        if self.recorded >= SUBMIT_EVERY {
            self.submit();
        }
    }

    /// Records a copy between two buffers.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy(&mut self, from: View<'_>, to: View<'_>) {
        to.expect(from.len);
        self.pass = None;
        let (from_offset, to_offset, bytes) = (4 * from.offset as u64, 4 * to.offset as u64, 4 * from.len as u64);
        self.encoder().copy_buffer_to_buffer(&from.buffer.inner, from_offset, &to.buffer.inner, to_offset, bytes);
    }

    /// Records zeros for a part of a buffer.
    pub fn clear(&mut self, view: View<'_>) {
        self.pass = None;
        self.encoder().clear_buffer(&view.buffer.inner, 4 * view.offset as u64, Some(4 * view.len as u64));
    }

    /// Submits what was recorded.
    pub fn submit(&mut self) {
        self.pass = None;
        self.recorded = 0;
        if let Some(encoder) = self.encoder.take() {
            self.context.queue.submit([encoder.finish()]);
        }
    }

    fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        let device = &self.context.device;
        self.encoder.get_or_insert_with(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()))
    }

    fn pass(&mut self) -> &mut wgpu::ComputePass<'static> {
        if self.pass.is_none() {
            let pass = self.encoder().begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.pass = Some(pass.forget_lifetime());
        }
        self.pass.as_mut().expect("just set")
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        self.submit();
    }
}
