//! What the host asks of a vendor's driver: the only seam to foreign functions.

use std::ffi::{CStr, c_void};
use std::fmt::Debug;

use omniflash_core::{Result, Stream};
use omniflash_device::Launch;

/// A vendor's driver on one device: each method is one or two of its calls, each failure a typed error that names the
/// function, the code and the driver's text.
///
/// Methods but [`enter`](Driver::enter) are called while the device is the thread's. The types of this crate own what
/// they make, enter the device, and give back on drop: memory, streams, modules, [`Event`](crate::Event),
/// [`Graph`](crate::Graph).
///
/// A [`Stream`] is vouched for by whoever made it, so that methods which only take one are safe.
///
/// # Safety
/// - Handles may be used from any thread, by several at a time.
/// - What a method answers is what the driver's documentation says of the calls named there.
pub unsafe trait Driver: Debug + Send + Sync + Sized + 'static {
    /// A mark in a stream.
    type Event: Copy + Debug;
    /// What a capture ended with.
    type CapturedGraph: Copy + Debug;
    /// A graph that can be replayed.
    type Graph: Copy + Debug;
    /// A loaded image.
    type Module: Copy + Debug;
    /// A kernel of a loaded image.
    type Function: Copy + Debug;
    /// Proof that the device is this thread's; dropped, the caller's own choice of device comes back.
    type Entered<'d>;

    /// The method of the backend that prepares launches, as errors advise it: `CudaBackend::prepare`.
    const PREPARE: &'static str;

    /// The code by which the driver says that memory is used up.
    const OUT_OF_MEMORY: i64;

    /// Makes the device this thread's, until the guard is dropped.
    ///
    /// # Errors
    /// [`Error::Driver`](omniflash_core::Error::Driver), as for all methods here.
    fn enter(&self) -> Result<Self::Entered<'_>>;

    /// Whether memory can be allocated and freed in the order of a stream.
    fn has_memory_pools(&self) -> bool;

    /// Waits for all work of the device.
    ///
    /// # Errors
    /// Also those of the work.
    fn synchronize_device(&self) -> Result<()>;

    /// A stream that does not wait for the default stream, as an integer.
    ///
    /// # Errors
    /// As above.
    fn create_stream(&self) -> Result<u64>;

    /// Destroys a stream; work already in it is still done.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - [`create_stream`](Driver::create_stream) made it, and it is used no more.
    unsafe fn destroy_stream(&self, stream: u64) -> Result<()>;

    /// Waits for all work on the stream.
    ///
    /// # Errors
    /// Also those of the work.
    fn synchronize(&self, stream: &Stream) -> Result<()>;

    /// Whether work on the stream is being captured in a graph rather than done.
    ///
    /// # Errors
    /// As above.
    fn is_capturing(&self, stream: &Stream) -> Result<bool>;

    /// An id of the stream that no other stream of the process ever has, if the driver knows one; never 0. Not asked
    /// of a stream that is being captured.
    ///
    /// # Errors
    /// As above.
    fn stream_id(&self, stream: &Stream) -> Result<u64>;

    /// Memory of `bytes`, not 0, at once.
    ///
    /// # Errors
    /// As above, with [`OUT_OF_MEMORY`](Driver::OUT_OF_MEMORY).
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Memory of `bytes`, not 0, for work enqueued on the stream from now on. Asked of devices with pools only.
    ///
    /// # Errors
    /// As above, with [`OUT_OF_MEMORY`](Driver::OUT_OF_MEMORY).
    fn allocate_on(&self, bytes: usize, stream: &Stream) -> Result<u64>;

    /// Frees memory after all work of the device, and waits for that.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The memory was allocated here and not freed, and no work enqueued later uses it.
    unsafe fn free(&self, address: u64) -> Result<()>;

    /// Frees memory after all work now on the stream.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - As [`free`](Driver::free), and no work of other streams uses the memory.
    unsafe fn free_on(&self, address: u64, stream: &Stream) -> Result<()>;

    /// Fills memory with zeros, in the order of the stream.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The memory has so many bytes, and is used by nothing else then.
    unsafe fn zero(&self, address: u64, bytes: usize, stream: &Stream) -> Result<()>;

    /// Copies host bytes to the device, in the order of the stream.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The target has so many bytes, and the source stays as it is until the stream has passed the copy.
    unsafe fn copy_to_device(&self, source: &[u8], target: u64, stream: &Stream) -> Result<()>;

    /// Copies device memory to the host, in the order of the stream.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The source has so many bytes, and the target stays alive and unused until the stream has passed the copy.
    unsafe fn copy_to_host(&self, source: u64, target: &mut [u8], stream: &Stream) -> Result<()>;

    /// A mark that measures time.
    ///
    /// # Errors
    /// As above.
    fn create_event(&self) -> Result<Self::Event>;

    /// Destroys a mark.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The event is alive, and used no more.
    unsafe fn destroy_event(&self, event: Self::Event) -> Result<()>;

    /// Sets the mark after all work now on the stream.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The event is alive.
    unsafe fn record_event(&self, event: Self::Event, stream: &Stream) -> Result<()>;

    /// Waits until work has reached the mark.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The event is alive.
    unsafe fn synchronize_event(&self, event: Self::Event) -> Result<()>;

    /// Milliseconds between two marks that work has reached.
    ///
    /// # Errors
    /// As above, also when one was never set.
    ///
    /// # Safety
    /// - Both events are alive.
    unsafe fn elapsed_ms(&self, begin: Self::Event, end: Self::Event) -> Result<f32>;

    /// Captures what this thread enqueues on the stream from now on, instead of doing it.
    ///
    /// # Errors
    /// As above.
    fn begin_capture(&self, stream: &Stream) -> Result<()>;

    /// Ends the capture of a stream, even one that failed.
    ///
    /// # Errors
    /// As above; there is no graph then.
    fn end_capture(&self, stream: &Stream) -> Result<Self::CapturedGraph>;

    /// Makes a graph that can be replayed.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - `captured` is alive.
    unsafe fn instantiate_graph(&self, captured: Self::CapturedGraph) -> Result<Self::Graph>;

    /// Destroys what a capture ended with; graphs instantiated from it live on.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - `captured` is alive, and used no more.
    unsafe fn destroy_captured_graph(&self, captured: Self::CapturedGraph) -> Result<()>;

    /// Enqueues a graph's work.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The graph is alive, and so is the memory that its work uses until the stream has passed it.
    unsafe fn launch_graph(&self, graph: Self::Graph, stream: &Stream) -> Result<()>;

    /// Destroys a graph.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The graph is alive, and used no more.
    unsafe fn destroy_graph(&self, graph: Self::Graph) -> Result<()>;

    /// Loads a compiled image, which stays as it is until it is unloaded.
    ///
    /// # Errors
    /// As above, with the log of the driver's own compiler where it has one;
    /// [`Error::Value`](omniflash_core::Error::Value) for what the driver could not be trusted to refuse.
    fn load_module(&self, image: &[u8]) -> Result<Self::Module>;

    /// Unloads an image.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The module is loaded and used no more, not by running kernels either.
    unsafe fn unload_module(&self, module: Self::Module) -> Result<()>;

    /// A kernel of a module, with so much dynamic shared memory allowed to its blocks.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The module is loaded.
    unsafe fn function(
        &self,
        module: Self::Module,
        name: &CStr,
        shared_memory_bytes: usize,
    ) -> Result<Self::Function>;

    /// Blocks of a kernel that fit on one multiprocessor, or compute unit, at a time.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The function's module is loaded.
    unsafe fn blocks_per_multiprocessor(&self, function: Self::Function, launch: &Launch) -> Result<usize>;

    /// Registers of a thread, and its bytes of local memory: what a kernel spills.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The function's module is loaded.
    unsafe fn registers_and_local_bytes(&self, function: Self::Function) -> Result<(usize, usize)>;

    /// Enqueues a kernel; the driver copies the parameters before the call returns.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Safety
    /// - The function's module is loaded.
    /// - `parameters` point at the kernel's parameters; what those address is valid until the stream has passed the
    ///   launch, and used by nothing else in a way that conflicts.
    unsafe fn launch(
        &self,
        function: Self::Function,
        launch: &Launch,
        parameters: &mut [*mut c_void],
        stream: &Stream,
    ) -> Result<()>;
}

/// Gives something back to the driver; that it cannot be done goes to the log, for a drop has nobody to tell.
///
/// Tries even where the device cannot be made current, for a handle names what is given back well enough.
pub(crate) fn release<D: Driver>(driver: &D, what: &str, release: impl FnOnce(&D) -> Result<()>) {
    let entered = driver.enter();
    let released = release(driver);
    if let Err(error) = released.and(entered.map(drop)) {
        tracing::debug!(%error, "giving back {what}");
    }
}

/// The devices that could be opened, in their order; for each of the others there is a warning.
///
/// Takes the driver's ordinal of each device, and what opening it gave.
pub fn usable<D>(opened: impl IntoIterator<Item = (u32, Result<D>)>) -> Vec<D> {
    let warned = |(ordinal, device): (u32, Result<D>)| {
        device.inspect_err(|error| tracing::warn!(ordinal, %error, "a GPU cannot be used")).ok()
    };
    opened.into_iter().filter_map(warned).collect()
}
