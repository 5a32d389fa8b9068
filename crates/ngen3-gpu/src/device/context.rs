//! [`Context`]: an open device, its pipelines, buffers and transfers.

use std::collections::HashMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard};

use ngen3_engine::Error;
use wgpu::{BufferUsages, Features};

use super::adapter::Adapter;
use super::buffer::{Buffer, View};
use super::template::{Constants, expand};

/// Most bytes of one transfer to or from the device.
const TRANSFER_BYTES: usize = 32 << 20;

/// Name of a kernel, and its constants.
type PipelineKey = (&'static str, Vec<u32>);

/// An open device.
pub struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    name: String,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    /// First error that nothing waited for.
    failure: Arc<Mutex<Option<String>>>,
    binding_bytes: usize,
}

/// Compiled kernel.
pub(super) struct Pipeline {
    pub inner: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Context {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's reason.
    pub fn open(adapter: &Adapter) -> Result<Self, Error> {
        let limits = adapter.inner.limits();
        let binding_bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("ngen3"),
            required_features: Features::IMMEDIATES,
            required_limits: limits,
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let opened = pollster::block_on(adapter.inner.request_device(&descriptor));
        let (device, queue) = opened.map_err(|error| Error::Device(format!("{}: {error}", adapter.name())))?;
        let failure = Arc::new(Mutex::new(None));
        let first = |failure: &Mutex<Option<String>>, message: String| {
            lock(failure).get_or_insert(message);
        };
        let shared = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| first(&shared, error.to_string())));
        let shared = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                first(&shared, format!("the device was lost: {message}"));
            }
        });
        Ok(Self {
            device,
            queue,
            name: adapter.name().to_owned(),
            pipelines: Mutex::default(),
            failure,
            binding_bytes: usize::try_from(binding_bytes).unwrap_or(usize::MAX),
        })
    }

    /// Name of the hardware.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Most elements of a [`View`] that a kernel can be given, a multiple of 64.
    pub fn binding_len(&self) -> usize {
        self.binding_bytes / 4 / 64 * 64
    }

    /// Returns the first error since the last call.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn check(&self) -> Result<(), Error> {
        match lock(&self.failure).take() {
            Some(message) => Err(Error::Device(format!("{}: {}", self.name, message.replace('\n', " ")))),
            None => Ok(()),
        }
    }

    /// Allocates a buffer of `len` elements, all 0.
    ///
    /// # Errors
    /// [`Error::Memory`] naming `what`.
    pub fn buffer(&self, what: &'static str, len: usize) -> Result<Buffer, Error> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        Ok(Buffer::new(self.allocate(what, len, usage)?, len, what))
    }

    fn allocate(&self, what: &'static str, len: usize, usage: BufferUsages) -> Result<wgpu::Buffer, Error> {
        let bytes = len.saturating_mul(4).max(4);
        // A buffer that is larger than the device takes is an error of validation.
        let scopes = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory]
            .map(|filter| self.device.push_error_scope(filter));
        let descriptor =
            wgpu::BufferDescriptor { label: Some(what), size: bytes as u64, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        let errors = scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop())).count();
        if errors > 0 { Err(Error::Memory { what, bytes }) } else { Ok(buffer) }
    }

    /// Allocates a buffer with this content.
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub fn upload<T: bytemuck::NoUninit>(&self, what: &'static str, values: &[T]) -> Result<Buffer, Error> {
        let buffer = self.buffer(what, std::mem::size_of_val(values) / 4)?;
        self.write(buffer.all(), values);
        Ok(buffer)
    }

    /// Replaces the first elements of a part of a buffer, before the next commands that are submitted.
    ///
    /// # Panics
    /// If there are more values than elements.
    pub fn write<T: bytemuck::NoUninit>(&self, to: View<'_>, values: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        assert!(bytes.len() <= 4 * to.len, "elements of {}", to.buffer.what());
        for (index, bytes) in bytes.chunks(TRANSFER_BYTES).enumerate() {
            let offset = 4 * to.offset + index * TRANSFER_BYTES;
            self.queue.write_buffer(&to.buffer.inner, offset as u64, bytes);
            if bytes.len() == TRANSFER_BYTES {
                // Staging memory of a large transfer is freed before the next.
                self.queue.submit([]);
            }
        }
    }

    /// Waits for all that was submitted and returns a part of a buffer.
    ///
    /// # Errors
    /// [`Error::Device`] if anything failed since the last call; [`Error::Memory`] for the staging memory.
    pub fn read(&self, from: View<'_>) -> Result<Vec<f32>, Error> {
        let mut values = Vec::with_capacity(from.len);
        let each = from.len.min(TRANSFER_BYTES / 4);
        let staging = self.allocate("a transfer", each, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        while values.len() < from.len {
            let bytes = 4 * (from.len - values.len()).min(each) as u64;
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let offset = 4 * (from.offset + values.len()) as u64;
            encoder.copy_buffer_to_buffer(&from.buffer.inner, offset, &staging, 0, bytes);
            self.queue.submit([encoder.finish()]);
            let (sender, receiver) = mpsc::channel();
            staging.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
                let _ = sender.send(result);
            });
            let failed = |error: &dyn std::fmt::Display| Error::Device(format!("{}: {error}", self.name));
            self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|error| failed(&error))?;
            // An earlier error says more than that of the transfer that follows from it.
            self.check()?;
            match receiver.recv() {
                Ok(result) => result.map_err(|error| failed(&error))?,
                Err(error) => return Err(failed(&error)),
            }
            let mapped = staging.get_mapped_range(0..bytes).map_err(|error| failed(&error))?;
            values.extend_from_slice(bytemuck::cast_slice(&mapped));
            drop(mapped);
            staging.unmap();
        }
        self.check()?;
        Ok(values)
    }

    /// Returns a kernel, compiled on its first use. `writes` has, for each binding, true if the kernel writes to it.
    pub(super) fn pipeline(
        &self,
        name: &'static str,
        source: &str,
        constants: &Constants,
        writes: &[bool],
        immediates: usize,
    ) -> Arc<Pipeline> {
        let key = (name, constants.iter().map(|(_, value)| *value).collect());
        if let Some(pipeline) = lock(&self.pipelines).get(&key) {
            return Arc::clone(pipeline);
        }
        let entries: Vec<_> = writes
            .iter()
            .enumerate()
            .map(|(binding, &writes)| wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: !writes },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let device = &self.device;
        let layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(name), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 4 * immediates as u32,
        });
        let source = expand(source, constants);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let inner = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // The kernels write all shared memory before they read it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        let pipeline = Arc::new(Pipeline { inner, layout });
        lock(&self.pipelines).insert(key, Arc::clone(&pipeline));
        pipeline
    }
}
