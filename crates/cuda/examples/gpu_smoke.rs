//! A first look at a GPU: whether results are right, and how fast they come. Also builds the kernels that it needs
//! on a machine without a GPU.
//!
//! ```text
//! gpu_smoke info                    the devices, or why there is none
//! gpu_smoke kernels sm_90           fill the cache named by OMNIFLASH_CACHE with the kernels of `check` and `time`
//! gpu_smoke check                   errors of many problems against the reference
//! gpu_smoke time                    one JSON line a case: CUDA graph replay, L2 flushed before each, median
//! gpu_smoke serve                   times the cases named on standard input, `NAME [block_m x block_n] [sSTAGES] [wROWS]
//!                                   [algorithm]` a line, after 80 ms of idling each: to be interleaved with other systems
//! gpu_smoke overhead                microseconds from the call to the end of a launch, on the host
//! gpu_smoke jit                     milliseconds of calls with a mask that no cache has seen: first, after a new start,
//!                                   and planned before
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with tests")]
mod support;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use omniflash_core::{
    Algorithm, AttentionConfig, AttentionOptions, Backend, DeviceSource, Error, Mask, MaskFunction,
    ReferenceBackend, Result, ScoreMod, Stream, Tensor,
};
use omniflash_cuda::{CudaBackend, OfflinePlanner, kernel_store, probe};
use support::{cases, errors, gpu, launch, with_dense_problem, with_host_problem};

/// Bytes written before each replay: more than any second-level cache.
const FLUSH_BYTES: usize = 256 << 20;

type Shape = (usize, (usize, usize), (usize, usize), usize);

/// Names as in the peers' benchmark.
fn timed() -> Vec<(String, Shape, bool)> {
    let mut cases = Vec::new();
    for (seqlen, batch) in [(512, 32), (2048, 8), (4096, 4), (16_384, 1)] {
        for is_causal in [false, true] {
            for (dim, heads) in [(64, 32), (128, 16), (256, 8)] {
                let mask = if is_causal { "causal" } else { "full" };
                let name = format!("B{batch}_S{seqlen}_H{heads}_{heads}_D{dim}_{mask}");
                cases.push((name, (batch, (seqlen, seqlen), (heads, heads), dim), is_causal));
            }
        }
    }
    for (batch, heads, dim, keys) in [
        (1, (32, 8), 128, 4096),
        (1, (32, 8), 128, 32_768),
        (16, (32, 8), 128, 8192),
        (64, (32, 8), 128, 4096),
        (16, (32, 32), 128, 4096),
        (16, (64, 8), 64, 8192),
        (8, (16, 1), 256, 8192),
    ] {
        let name = format!("dec_B{batch}_H{}_{}_D{dim}_KV{keys}", heads.0, heads.1);
        cases.push((name, (batch, (1, keys), heads, dim), false));
    }
    cases
}

fn mask(is_causal: bool) -> Mask<'static> {
    if is_causal { Mask::Causal } else { Mask::None }
}

/// The mask that the end of a case's name stands for: `full`, `causal`, `closure` (causal, as a closure),
/// `window1024`; `softcap` and `alibicausal` with a score modification.
fn named_mask(name: &str) -> Option<Mask<'static>> {
    match name.rsplit('_').next()? {
        "full" | "softcap" => Some(Mask::None),
        "causal" | "alibicausal" => Some(Mask::Causal),
        "closure" => Some(Mask::from_fn(|_, _, q, k| k <= q)),
        window => {
            let width: usize = window.strip_prefix("window")?.parse().ok()?;
            Some(Mask::SlidingWindow { left: width.checked_sub(1)?, right: 0 })
        }
    }
}

/// A tensor that a mask or a bias reads, by the end of a case's name: `booltrue`, `boolcausal`, `boolrandom` (seven of ten are
/// true), `addcausal` (0 and -inf), `addrandom`, `bias`, each one plane for all heads, `biash` with one for each head, `document1024`
/// (so many keys each). `16` behind a name of values means bf16, else they are f32.
struct NamedTensor {
    tensor: Tensor,
    role: Role,
}

enum Role {
    Mask,
    Bias,
    Documents,
}

impl NamedTensor {
    fn new(
        backend: &CudaBackend,
        name: &str,
        (batch, (rows, keys), heads, _): Shape,
        stream: &Stream,
    ) -> Result<Option<Self>> {
        let Some(end) = name.rsplit('_').next() else { return Ok(None) };
        if let Some(Ok(size)) = end.strip_prefix("document").map(str::parse::<usize>) {
            let ids: Vec<i32> = (0..batch * keys).map(|i| (i % keys / size.max(1)) as i32).collect();
            let tensor = Tensor::from_slice(backend, &ids, &[batch, keys], stream)?;
            return Ok(Some(NamedTensor { tensor, role: Role::Documents }));
        }
        let (end, is_bf16) = end.strip_suffix("16").map_or((end, false), |end| (end, true));
        let planes = if end == "biash" { heads.0 } else { 1 };
        let shape = [1, planes, rows, keys];
        let is_causal = |i: usize| i % keys + rows <= i / keys % rows + keys;
        // A sequence of numbers that is long and has no period of a tile's.
        let random = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 8;
        let values = |value: &dyn Fn(usize) -> f32| -> Result<Tensor> {
            let count = planes * rows * keys;
            if is_bf16 {
                let data: Vec<bf16> = (0..count).map(|i| bf16::from_f32(value(i))).collect();
                return Tensor::from_slice(backend, &data, &shape, stream);
            }
            let data: Vec<f32> = (0..count).map(value).collect();
            Tensor::from_slice(backend, &data, &shape, stream)
        };
        let bools = |is_true: &dyn Fn(usize) -> bool| {
            let data: Vec<bool> = (0..rows * keys).map(is_true).collect();
            Tensor::from_slice(backend, &data, &shape, stream)
        };
        let uniform = |i: usize| random(i) as f32 / (1 << 23) as f32 - 1.0;
        let tensor = match end {
            "booltrue" => bools(&|_| true)?,
            "boolcausal" => bools(&is_causal)?,
            "boolrandom" => bools(&|i| random(i) % 10 < 7)?,
            "addcausal" => values(&|i| if is_causal(i) { 0.0 } else { f32::NEG_INFINITY })?,
            "addrandom" | "bias" | "biash" => values(&uniform)?,
            _ => return Ok(None),
        };
        let role = if end.starts_with("bias") { Role::Bias } else { Role::Mask };
        Ok(Some(NamedTensor { tensor, role }))
    }

    fn options(&self) -> AttentionOptions<'_> {
        let options = AttentionOptions::new();
        match self.role {
            Role::Mask => options.mask(Mask::Dense(self.tensor.view())),
            Role::Bias => options.score_mod(ScoreMod::Bias(self.tensor.view())),
            Role::Documents => options.mask(Mask::Document { ids: self.tensor.view() }),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["info"] => info(),
        ["kernels", arch] => kernels(arch),
        ["check"] => with_gpu(check),
        ["time"] => with_gpu(time),
        ["serve"] => with_gpu(serve),
        ["overhead"] => with_gpu(overhead),
        ["jit"] => with_gpu(jit),
        _ => Err("one of info, kernels ARCH, check, time, serve, overhead, jit".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn with_gpu(run: impl FnOnce(&CudaBackend) -> Result<(), String>) -> Result<(), String> {
    match gpu() {
        Ok(backend) => run(&backend),
        Err(reason) => {
            println!("skipped: {reason}");
            Ok(())
        }
    }
}

fn info() -> Result<(), String> {
    match probe::devices() {
        Ok(devices) => devices.iter().for_each(|device| println!("{device:?}")),
        Err(absent) => println!("cuda is absent: {absent}"),
    }
    for (name, version) in kernel_store().compilers() {
        println!("{name}: {}", version.unwrap_or_else(|reason| reason));
    }
    Ok(())
}

fn kernels(arch: &str) -> Result<(), String> {
    let store = Arc::new(kernel_store());
    let planner = OfflinePlanner::new(arch, Arc::clone(&store)).map_err(|error| error.to_string())?;
    let (begin, mut failures) = (Instant::now(), 0);
    let mut report = |plan: Result<omniflash_core::AttentionPlan>| match plan {
        Ok(plan) => println!("{plan}"),
        Err(error) => {
            failures += 1;
            eprintln!("{error}");
        }
    };
    for (_, case) in cases() {
        report(with_host_problem(&case, |problem| planner.plan(problem)));
        // Where the check splits keys on a larger or smaller device, it needs the kernel that joins them.
        let split = support::Case { partitions: Some(2), algorithm: omniflash_core::Algorithm::Auto, ..case };
        report(with_host_problem(&split, |problem| planner.plan(problem)));
    }
    for (_, (_, seqlen, heads, dim), is_causal) in timed() {
        let host = Stream::host();
        let shape = (1, (seqlen.0.min(4096), seqlen.1.min(4096)), heads, dim);
        let options = AttentionOptions::new().mask(mask(is_causal));
        report(with_dense_problem(&ReferenceBackend::new(), shape, &options, &host, |problem| {
            planner.plan(problem)
        }));
    }
    println!("{:.1} s", begin.elapsed().as_secs_f64());
    if failures == 0 { Ok(()) } else { Err(format!("{failures} plans failed")) }
}

fn check(backend: &CudaBackend) -> Result<(), String> {
    let mut wrong = 0;
    for (name, case) in cases() {
        let begin = Instant::now();
        match errors(backend, &case) {
            Ok((errors, plan)) => {
                let verdict = if errors.are_fine(case.dtype) { "ok" } else { "WRONG" };
                wrong += usize::from(verdict == "WRONG");
                println!(
                    "{verdict:5} rms {:.2e} lse {:.2e} {:.2} s {name} {:?} {:?} {:?} {:?} | {plan}",
                    errors.relative_rms,
                    errors.lse,
                    begin.elapsed().as_secs_f64(),
                    case.dtype,
                    case.seqlen,
                    case.keys,
                    case.mask
                );
            }
            Err(error) => {
                wrong += 1;
                println!("ERROR {name} {case:?}: {error}");
            }
        }
    }
    println!("{wrong} of {} wrong on {}", cases().len(), backend.info().device_name);
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} cases are wrong")) }
}

fn time(backend: &CudaBackend) -> Result<(), String> {
    for (name, shape, is_causal) in timed() {
        match milliseconds(backend, shape, AttentionOptions::new().mask(mask(is_causal))) {
            Ok((ms, plan)) => println!("{}", line(&name, shape, is_causal, ms, &plan)),
            Err(error) => println!("{name}: {error}"),
        }
    }
    Ok(())
}

fn serve(backend: &CudaBackend) -> Result<(), String> {
    for request in std::io::stdin().lines() {
        let request = request.map_err(|error| error.to_string())?;
        let answer = serve_one(backend, &request).unwrap_or_else(|error| format!("{request}: {error}"));
        println!("{answer}");
        std::io::stdout().flush().map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A line such as `B4_S4096_H16_16_D128_causal 128x160 flash3`; `s1` is one stage, `w16` a warp of 16 rows, `n32` one of 32 keys.
fn serve_one(backend: &CudaBackend, request: &str) -> Result<String, String> {
    let mut words = request.split_whitespace();
    let name = words.next().ok_or("no case")?;
    let numbers: Vec<usize> = name
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse().map_err(|_| "a number too large"))
        .collect::<Result<_, _>>()?;
    let [batch, seqlen, heads, kv_heads, dim, ..] = numbers[..] else { return Err("not B_S_H_H_D".into()) };
    let mut config = AttentionConfig::default();
    for word in words {
        let number = |prefix: char| word.strip_prefix(prefix)?.parse().ok();
        if let Some((m, n)) = word.split_once('x') {
            (config.block_m, config.block_n) = (m.parse().ok(), n.parse().ok());
        } else if let Some(stages) = number('s') {
            config.num_pipeline_stages = Some(stages);
        } else if let Some(rows) = number('w') {
            config.warp_m = Some(rows);
        } else if let Some(keys) = number('n') {
            config.warp_n = Some(keys);
        } else {
            config.algorithm = word.parse().map_err(|error: Error| error.to_string())?;
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(80));
    let shape = (batch, (seqlen, seqlen), (heads, kv_heads), dim);
    let is_causal = ["causal", "causal16", "closure"].iter().any(|end| name.ends_with(end));
    let stream = backend.stream().map_err(|error| error.to_string())?;
    let tensor = NamedTensor::new(backend, name, shape, &stream).map_err(|error| error.to_string())?;
    let options = match (&tensor, named_mask(name)) {
        (Some(tensor), _) => tensor.options(),
        (None, Some(mask)) if name.ends_with("softcap") => {
            AttentionOptions::new().mask(mask).score_mod(ScoreMod::Softcap { cap: 30.0 })
        }
        (None, Some(mask)) if name.ends_with("alibicausal") => {
            AttentionOptions::new().mask(mask).score_mod(ScoreMod::Alibi { slopes: None })
        }
        (None, Some(mask)) => AttentionOptions::new().mask(mask),
        (None, None) => return Err("the case ends with no mask's name".into()),
    };
    let (ms, plan) =
        milliseconds(backend, shape, options.config(config)).map_err(|error| error.to_string())?;
    Ok(line(name, shape, is_causal, ms, &plan))
}

/// The median of replays of a graph with one launch.
fn milliseconds(backend: &CudaBackend, shape: Shape, options: AttentionOptions<'_>) -> Result<(f32, String)> {
    const REPLAYS: usize = 20;
    let stream = backend.stream()?;
    with_dense_problem(backend, shape, &options, &stream, |problem| {
        let plan = backend.plan(problem)?;
        backend.prepare(&plan, problem, &stream)?;
        let graph = backend.capture(&stream, || launch(backend, problem, &stream).map(drop))?;
        let (begin, end) = (backend.event()?, backend.event()?);
        let mut times = Vec::new();
        for _ in 0..REPLAYS + 3 {
            // Zeroed on the stream, then given back: what it displaces is the cache.
            drop(backend.alloc(FLUSH_BYTES, &stream)?);
            begin.record(&stream)?;
            // SAFETY: the problem's tensors live until `with_dense_problem` has synchronised the stream.
            unsafe { graph.replay(&stream) }?;
            end.record(&stream)?;
            times.push(begin.elapsed_ms(&end)?);
        }
        let times = &mut times[3..];
        times.sort_by(f32::total_cmp);
        Ok((times[times.len() / 2], plan.to_string()))
    })
}

fn line(name: &str, (batch, seqlen, heads, dim): Shape, is_causal: bool, ms: f32, plan: &str) -> String {
    let seconds = f64::from(ms) * 1e-3;
    let rate = if seqlen.0 == 1 {
        let bytes = (2 * batch * seqlen.1 * heads.1 * dim * 2) as f64;
        format!("\"tbps\":{:.3}", bytes / seconds * 1e-12)
    } else {
        let flops = 4.0 * (batch * heads.0 * dim) as f64 * (seqlen.0 * seqlen.1) as f64;
        format!("\"tflops\":{:.1}", flops * if is_causal { 0.5 } else { 1.0 } / seconds * 1e-12)
    };
    format!(
        "{{\"system\":\"omniflash-cuda\",\"case\":\"{name}\",\"dtype\":\"bfloat16\",\"ms\":{ms:.4},{rate},\"plan\":\"{plan}\"}}"
    )
}

fn overhead(backend: &CudaBackend) -> Result<(), String> {
    let stream = backend.stream().map_err(|error| error.to_string())?;
    let causal = AttentionOptions::new().mask(Mask::Causal);
    for (what, keys) in [("one kernel", 64), ("split and joined", 8192)] {
        let measured =
            with_dense_problem(backend, (1, (1, keys), (8, 8), 128), &causal, &stream, |problem| {
                const LAUNCHES: u32 = 200;
                let run = || -> Result<f64> {
                    let begin = Instant::now();
                    for _ in 0..LAUNCHES {
                        launch_only(backend, problem, &stream)?;
                    }
                    let elapsed = begin.elapsed();
                    backend.synchronize(&stream)?;
                    Ok(elapsed.as_secs_f64() * 1e6 / f64::from(LAUNCHES))
                };
                run()?;
                let mut times = (0..20).map(|_| run()).collect::<Result<Vec<f64>>>()?;
                times.sort_by(f64::total_cmp);
                Ok(times[times.len() / 2])
            });
        println!("{what}: {:.2} us a call", measured.map_err(|error| error.to_string())?);
    }
    Ok(())
}

/// What a caller does for each attention: plan (from the cache) and launch.
fn launch_only(
    backend: &CudaBackend,
    problem: &omniflash_core::AttentionProblem<'_>,
    stream: &Stream,
) -> Result<()> {
    let plan = backend.plan(problem)?;
    // SAFETY: the problem's tensors live until `with_dense_problem` has synchronised the stream.
    unsafe { backend.launch(&plan, problem, stream) }
}

/// A mask whose source no other process has compiled.
struct Unseen(String);

impl MaskFunction for Unseen {
    fn visible(&self, _: usize, _: usize, q: i64, k: i64) -> bool {
        k <= q
    }
    fn device_source(&self) -> Option<DeviceSource> {
        Some(DeviceSource::new("Unseen", self.0.as_str(), &0i32))
    }
}

fn jit(first: &CudaBackend) -> Result<(), String> {
    let number = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let source = format!(
        "struct Unseen {{ int unused; OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const {{ return at.k <= at.q; }} }};\n\
         // {number}\n"
    );
    // Backends of their own have no module loaded and no plan made, as after a new start.
    let second = gpu()?;
    for (name, shape, algorithm) in [
        ("portable", (1, (256, 256), (4, 4), 128), Algorithm::Flash2),
        ("hopper", (1, (2048, 2048), (4, 4), 128), Algorithm::Flash3),
        ("decode", (1, (1, 4096), (8, 2), 128), Algorithm::Auto),
    ] {
        for (what, backend) in [("first", first), ("from the cache on disk", &second), ("again", &second)] {
            let stream = backend.stream().map_err(|error| error.to_string())?;
            let config = AttentionConfig { algorithm, ..AttentionConfig::default() };
            let options = AttentionOptions::new().mask(Mask::custom(Unseen(source.clone()))).config(config);
            let measured = with_dense_problem(backend, shape, &options, &stream, |problem| {
                backend.synchronize(&stream)?;
                let begin = Instant::now();
                launch_only(backend, problem, &stream)?;
                backend.synchronize(&stream)?;
                Ok(begin.elapsed().as_secs_f64() * 1e3)
            });
            match measured {
                Ok(milliseconds) => println!("{name}, {what}: {milliseconds:.3} ms"),
                Err(error) => println!("{name}, {what}: {error}"),
            }
        }
    }
    Ok(())
}
