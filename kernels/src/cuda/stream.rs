//! An order of work on a device: copies, fills, launches, events, and the recording of all that into a graph.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::Context;
use super::kernel::ARGUMENTS_MAX;
use super::pinned::Use;
use super::{Argument, CudaError, DeviceRange, Event, Graph, Kernel, Launch, Pinned, Plain, bytes_of};

/// A stream. What is given to it runs in order, after the call has returned.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    handle: sys::CUstream,
}

// SAFETY: a stream may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; calls from two threads are in some order.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.make_current()?;
        // Not ordered with the default stream, which nothing here uses.
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(CudaError::driver("make a stream"))?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// Copies `source[values]` to the start of `target`. Until the copy has ended, `source` waits when it is written to.
    ///
    /// # Errors
    /// If a range is too short, or a graph is being recorded: its replays would read what `source` holds then.
    pub fn upload<T: Plain>(
        &self,
        source: &mut Pinned<T>,
        values: Range<usize>,
        target: DeviceRange,
    ) -> Result<(), CudaError> {
        self.is_not_recording("a copy from the host")?;
        let bytes = checked::<T>(source.len(), &values, target)?;
        if bytes == 0 {
            return Ok(());
        }
        let start = source.begin(Use::Upload, self.handle)?;
        // SAFETY: `values` lies inside the buffer, which stays allocated and unwritten until its event is reached.
        let slice = unsafe { std::slice::from_raw_parts(start.add(values.start), values.len()) };
        // SAFETY: `target` is at least as long, as was checked.
        unsafe { result::memcpy_htod_async(target.start().0, slice, self.handle) }
            .map_err(CudaError::driver("copy to the device"))?;
        self.mark(source.last())
    }

    /// Copies the start of `source` to `target[values]`. Until the copy has ended, `target` waits when it is read.
    ///
    /// # Errors
    /// If a range is too short, or a graph is being recorded.
    pub fn download<T: Plain>(
        &self,
        source: DeviceRange,
        target: &mut Pinned<T>,
        values: Range<usize>,
    ) -> Result<(), CudaError> {
        self.is_not_recording("a copy to the host")?;
        let bytes = checked::<T>(target.len(), &values, source)?;
        if bytes == 0 {
            return Ok(());
        }
        let start = target.begin(Use::Download, self.handle)?;
        // SAFETY: `values` lies inside the buffer, which stays allocated and unread until its event is reached; `source`
        // is at least as long.
        unsafe {
            let slice = std::slice::from_raw_parts_mut(start.add(values.start), values.len());
            result::memcpy_dtoh_async(slice, source.start().0, self.handle)
        }
        .map_err(CudaError::driver("copy from the device"))?;
        self.mark(target.last())
    }

    /// Copies values of any host memory and waits until they are there: for the start and for tests.
    ///
    /// # Errors
    /// If `target` is too short, or a graph is being recorded.
    pub fn upload_now<T: Plain>(&self, source: &[T], target: DeviceRange) -> Result<(), CudaError> {
        self.is_not_recording("a copy from the host")?;
        checked::<T>(source.len(), &(0..source.len()), target)?;
        // SAFETY: `target` is long enough; `source` is borrowed until the copy has ended.
        let copied = unsafe { result::memcpy_htod_async(target.start().0, bytes_of(source), self.handle) };
        self.synchronize()?;
        copied.map_err(CudaError::driver("copy to the device"))
    }

    /// Copies to any host memory and waits until the values are there.
    ///
    /// # Errors
    /// If `source` is too short, or a graph is being recorded.
    pub fn download_now<T: Plain>(&self, source: DeviceRange, target: &mut [T]) -> Result<(), CudaError> {
        self.is_not_recording("a copy to the host")?;
        checked::<T>(target.len(), &(0..target.len()), source)?;
        // SAFETY: `source` is long enough; `target` is borrowed until the copy has ended.
        let copied = unsafe { result::memcpy_dtoh_async(target, source.start().0, self.handle) };
        self.synchronize()?;
        copied.map_err(CudaError::driver("copy from the device"))
    }

    /// Copies `source` to `target`, which are equally long and do not overlap.
    ///
    /// # Errors
    /// If they do not.
    pub fn copy(&self, source: DeviceRange, target: DeviceRange) -> Result<(), CudaError> {
        if source.bytes() != target.bytes() {
            return Err(CudaError::Range { what: "copy", needed: source.bytes(), bytes: target.bytes() });
        }
        if source.start().0.abs_diff(target.start().0) < source.bytes() as u64 {
            return Err(CudaError::Shape { what: "a copy onto itself", value: source.bytes() });
        }
        if source.bytes() == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: both ranges are as long as is copied.
        unsafe { result::memcpy_dtod_async(target.start().0, source.start().0, source.bytes(), self.handle) }
            .map_err(CudaError::driver("copy on the device"))
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn fill(&self, target: DeviceRange, byte: u8) -> Result<(), CudaError> {
        if target.bytes() == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: the range is as long as is set.
        unsafe { result::memset_d8_async(target.start().0, byte, target.bytes(), self.handle) }
            .map_err(CudaError::driver("fill device memory"))
    }

    /// Lets `event` be reached when all that was given to this stream so far has ended.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: both were made by the driver and live.
        unsafe { result::event::record(event.handle(), self.handle) }.map_err(CudaError::driver("record an event"))
    }

    /// What is given to this stream from now on waits for the last [`Stream::record`] of `event`; the host does not.
    ///
    /// # Errors
    /// If the driver refuses, or a graph is being recorded: its replays would not wait.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        self.is_not_recording("a wait for another stream")?;
        // SAFETY: both were made by the driver and live.
        unsafe {
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            result::stream::wait_event(self.handle, event.handle(), flags)
        }
        .map_err(CudaError::driver("wait for an event"))
    }

    /// Waits until everything has ended.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: made by `new`.
        unsafe { result::stream::synchronize(self.handle) }.map_err(CudaError::driver("wait for the device"))
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// The arguments must be what the kernel takes, in order, and the memory that it reaches through them must be device
    /// memory of this device, as long as the kernel takes it to be.
    ///
    /// # Errors
    /// If the number or the sizes of the arguments are not the kernel's, or the driver refuses.
    pub unsafe fn launch(&self, kernel: &Kernel, launch: Launch, args: &[&dyn Argument]) -> Result<(), CudaError> {
        kernel.takes(args)?;
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.context.make_current()?;
        let mut addresses = [std::ptr::null_mut(); ARGUMENTS_MAX];
        for (address, arg) in addresses.iter_mut().zip(args) {
            *address = arg.address().cast_mut();
        }
        let dim = |[x, y, z]: [u32; 3]| (x, y, z);
        // SAFETY: the arguments are as the caller promises; the driver copies them before it returns.
        unsafe {
            let (grid, block) = (dim(launch.grid), dim(launch.block));
            let shared_bytes = launch.shared_bytes;
            result::launch_kernel(kernel.handle(), grid, block, shared_bytes, self.handle, &mut addresses[..args.len()])
        }
        .map_err(|error| CudaError::Driver { doing: "launch a kernel", name: kernel.says(error) })
    }

    /// Records what `work` gives to this stream, without running it, as a graph that can be launched again and again: with
    /// the same addresses and sizes, and what the memory holds then.
    ///
    /// # Errors
    /// What `work` fails with, or if it did what a graph cannot hold.
    pub fn record_graph(&self, work: impl FnOnce(&Self) -> Result<(), CudaError>) -> Result<Graph, CudaError> {
        self.is_not_recording("another graph")?;
        // Other threads may allocate meanwhile; this one may not.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: made by `new`; the capture is ended below on every path.
        unsafe { result::stream::begin_capture(self.handle, mode) }.map_err(CudaError::driver("record a graph"))?;
        let worked = work(self);
        // SAFETY: the capture was begun above.
        let ended = unsafe { result::stream::end_capture(self.handle) };
        match (worked, ended) {
            (Ok(()), Ok(graph)) if !graph.is_null() => Graph::instantiate(&self.context, graph),
            (Ok(()), Ok(_)) => Err(CudaError::Recording("something that ended the recording")),
            (Ok(()), Err(error)) => Err(CudaError::driver("end the recording of a graph")(error)),
            (Err(error), Ok(graph)) => {
                if !graph.is_null() {
                    // SAFETY: given to us by the driver just now.
                    let _ = unsafe { result::graph::destroy(graph) };
                }
                Err(error)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    fn is_not_recording(&self, what: &'static str) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: made by `new`.
        let status = unsafe { result::stream::is_capturing(self.handle) }
            .map_err(CudaError::driver("ask whether a graph is recorded"))?;
        if status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            Ok(())
        } else {
            Err(CudaError::Recording(what))
        }
    }

    /// Records the end of a copy that is under way; if that fails it waits for the copy here.
    fn mark(&self, last: &Event) -> Result<(), CudaError> {
        self.record(last).or_else(|error| self.synchronize().and(Err(error)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: destroyed once; the driver lets what is under way end.
            let _ = unsafe { result::stream::destroy(self.handle) };
        }
    }
}

/// The bytes of `values` out of `count`, if `device` has room for them.
fn checked<T>(count: usize, values: &Range<usize>, device: DeviceRange) -> Result<usize, CudaError> {
    let size = size_of::<T>();
    if values.start > values.end || values.end > count {
        return Err(CudaError::Range { what: "a copy's host side", needed: values.end * size, bytes: count * size });
    }
    let bytes = values.len() * size;
    if bytes > device.bytes() {
        return Err(CudaError::Range { what: "a copy's device side", needed: bytes, bytes: device.bytes() });
    }
    Ok(bytes)
}
