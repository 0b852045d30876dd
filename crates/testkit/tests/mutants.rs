//! The table can fail: backends with one deliberate fault each are caught by it, and by the right kind of complaint.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use omniflash_core::backend::Support;
use omniflash_core::{
    AttentionOptions, AttentionPlan, AttentionProblem, Backend, BackendInfo, Buffer, DType, Error, Index,
    KvCache, Mask, Query, ReferenceBackend, Result, ScoreMod, Stream, TensorMut, TensorRef,
};
use omniflash_testkit::Violation;
use omniflash_testkit::conformance::{self, Filter, Summary};
use omniflash_testkit::expectations::{EXPECTATIONS, Expectation, Expected};

type Launch = fn(&ReferenceBackend, &AttentionProblem<'_>) -> Result<()>;

/// The reference with a fault.
#[derive(Debug)]
struct Mutant {
    inner: ReferenceBackend,
    launch: Launch,
}

impl Backend for Mutant {
    fn info(&self) -> &BackendInfo {
        self.inner.info()
    }
    fn supports(&self, problem: &AttentionProblem<'_>) -> Support {
        self.inner.supports(problem)
    }
    fn plan(&self, problem: &AttentionProblem<'_>) -> Result<AttentionPlan> {
        self.inner.plan(problem)
    }
    fn alloc(&self, bytes: usize, stream: &Stream) -> Result<Buffer> {
        self.inner.alloc(bytes, stream)
    }
    fn copy_to_device(&self, source: &[u8], target: &mut Buffer, stream: &Stream) -> Result<()> {
        self.inner.copy_to_device(source, target, stream)
    }
    fn copy_to_host(&self, source: &Buffer, target: &mut [u8], stream: &Stream) -> Result<()> {
        self.inner.copy_to_host(source, target, stream)
    }
    fn stream(&self) -> Result<Stream> {
        self.inner.stream()
    }
    fn synchronize(&self, stream: &Stream) -> Result<()> {
        self.inner.synchronize(stream)
    }
    unsafe fn launch(&self, _: &AttentionPlan, problem: &AttentionProblem<'_>, _: &Stream) -> Result<()> {
        (self.launch)(&self.inner, problem)
    }
}

const MUTANTS: [(&str, Launch); 16] = [
    ("none", |reference, problem| changed(reference, problem, |_, _, _| {})),
    ("causal by one too many", |reference, problem| {
        changed(reference, problem, |_, _, options| options.mask = widened(&options.mask))
    }),
    ("causal from the top left", |reference, problem| {
        let zeros = vec![0i32; problem.shape().batch];
        let start = TensorRef::from_slice(&zeros, &[zeros.len()])?;
        changed(reference, problem, |_, _, options| {
            options.query_start.get_or_insert(start);
        })
    }),
    ("sink added twice", |reference, problem| {
        let Some(sinks) = problem.sinks() else { return changed(reference, problem, |_, _, _| {}) };
        let doubled: Vec<f32> =
            (0..problem.shape().num_heads).map(|head| float(sinks, head) + std::f32::consts::LN_2).collect();
        let sinks = TensorRef::from_slice(&doubled, &[doubled.len()])?;
        changed(reference, problem, |_, _, options| options.sinks = Some(sinks))
    }),
    ("last key dropped", |reference, problem| {
        let lengths = kv_lengths(problem);
        changed(reference, problem, |_, _, options| {
            let last = Mask::from_fn(move |b, _, _, k| k + 1 < lengths[b]);
            options.mask = std::mem::take(&mut options.mask).and(last);
        })
    }),
    ("one key too many", |reference, problem| {
        let room = problem.shape().seqlen_k as i64;
        let longer: Vec<i32> = kv_lengths(problem).iter().map(|&n| (n + 1).min(room) as i32).collect();
        let longer = TensorRef::from_slice(&longer, &[longer.len()])?;
        changed(reference, problem, |_, kv, _| match kv {
            KvCache::Dense { lengths: Some(lengths), .. } | KvCache::Continuous { lengths, .. } => {
                *lengths = longer
            }
            _ => {}
        })
    }),
    ("padding rows written", |reference, problem| {
        changed(reference, problem, |_, _, _| {})?;
        if let (Query::Padded { lengths: Some(lengths), .. }, false) =
            (problem.query(), problem.shape().is_empty())
        {
            let shape = problem.shape();
            for b in 0..shape.batch {
                for row in integer(lengths, &[b]) as usize..shape.seqlen_q {
                    poke(problem.out(), &[b, row, 0, 0], 0);
                }
            }
        }
        Ok(())
    }),
    ("gaps written", |reference, problem| {
        changed(reference, problem, |_, _, _| {})?;
        let (out, dim) = (problem.out(), problem.shape().value_dim as i64);
        if out.strides()[out.strides().len() - 2] > dim && !problem.shape().is_empty() {
            poke(out, &vec![0; out.shape().len()], dim);
        }
        Ok(())
    }),
    ("score modifications in reverse", |reference, problem| {
        changed(reference, problem, |_, _, options| options.score_mod = reversed(&options.score_mod))
    }),
    ("softcap ignored", |reference, problem| {
        changed(reference, problem, |_, _, options| {
            if matches!(options.score_mod, ScoreMod::Softcap { .. }) {
                options.score_mod = ScoreMod::Identity;
            }
        })
    }),
    ("softmax_scale ignored", |reference, problem| {
        changed(reference, problem, |_, _, options| options.softmax_scale = None)
    }),
    ("first page for all", |reference, problem| {
        let KvCache::Paged { page_table, .. } = problem.kv() else {
            return changed(reference, problem, |_, _, _| {});
        };
        let shape = page_table.shape().to_vec();
        let zeros = vec![0i32; shape.iter().product()];
        let zeros = TensorRef::from_slice(&zeros, &shape)?;
        changed(reference, problem, |_, kv, _| {
            if let KvCache::Paged { page_table, .. } = kv {
                *page_table = zeros;
            }
        })
    }),
    ("lse in base 2", |reference, problem| {
        changed(reference, problem, |_, _, _| {})?;
        if let (Some(lse), false) = (problem.lse(), problem.shape().is_empty()) {
            let element = lse.as_mut_ptr().cast::<f32>();
            // SAFETY: the lse has an element, in host memory that the launch may write.
            unsafe { element.write(element.read() * std::f32::consts::LOG2_E) };
        }
        Ok(())
    }),
    ("hidden rows average", |reference, problem| {
        // A finite fill instead of -inf: rows without a visible key see all keys.
        changed(reference, problem, |_, _, options| {
            if let Mask::Causal = options.mask {
                options.mask = Mask::Causal.or(Mask::from_fn(|_, _, q, _| q < 0));
            }
        })
    }),
    ("different every time", |reference, problem| {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        changed(reference, problem, |_, _, _| {})?;
        if CALLS.fetch_add(1, Ordering::Relaxed) % 2 == 1 && !problem.shape().is_empty() {
            let rows_written =
                !matches!(problem.query(), Query::Padded { lengths: Some(_), .. } | Query::Ragged { .. });
            if rows_written {
                // SAFETY: the first byte of the output is in host memory that the launch may write.
                unsafe { *problem.out().as_mut_ptr() ^= 1 };
            }
        }
        Ok(())
    }),
    ("refuses odd heads", |reference, problem| {
        if problem.shape().head_dim % 8 != 0 {
            return Err(Error::unsupported("mutant", "head_dim", "no tile fits", "multiples of 8 work"));
        }
        changed(reference, problem, |_, _, _| {})
    }),
];

/// Runs the reference on a changed copy of a problem.
fn changed<'a>(
    reference: &ReferenceBackend,
    problem: &AttentionProblem<'a>,
    change: impl FnOnce(&mut Query<'a>, &mut KvCache<'a>, &mut AttentionOptions<'a>),
) -> Result<()> {
    let mut options = AttentionOptions {
        softmax_scale: Some(problem.softmax_scale()),
        mask: problem.mask().clone(),
        score_mod: problem.score_mod().clone(),
        sinks: problem.sinks().cloned(),
        query_start: problem.query_start().cloned(),
        lse: problem.lse().is_some(),
        config: *problem.config(),
    };
    let (mut query, mut kv) = (problem.query().clone(), problem.kv().clone());
    change(&mut query, &mut kv, &mut options);
    let again = |tensor: &TensorMut<'_>| {
        // SAFETY: the launch may write the memory, and only through the copy while it lives.
        unsafe {
            TensorMut::from_raw(tensor.address(), tensor.dtype(), tensor.layout().clone(), tensor.device())
        }
    };
    let copy = AttentionProblem::new(query, kv, again(problem.out()), problem.lse().map(again), &options)?;
    omniflash_core::run(reference, &copy, &Stream::host())
}

/// Causal masks that let one more key through.
fn widened<'a>(mask: &Mask<'a>) -> Mask<'a> {
    match mask {
        Mask::Causal => Mask::SlidingWindow { left: usize::MAX, right: 1 },
        Mask::And(a, b) => Mask::And(Box::new(widened(a)), Box::new(widened(b))),
        mask => mask.clone(),
    }
}

fn reversed<'a>(score_mod: &ScoreMod<'a>) -> ScoreMod<'a> {
    match score_mod {
        ScoreMod::Then(a, b) => reversed(b).then(reversed(a)),
        score_mod => score_mod.clone(),
    }
}

fn kv_lengths(problem: &AttentionProblem<'_>) -> Vec<i64> {
    (0..problem.shape().batch)
        .map(|b| match problem.kv() {
            KvCache::Dense { k, lengths: None, .. } => k.shape()[1] as i64,
            KvCache::Ragged { cu_seqlens, .. } => integer(cu_seqlens, &[b + 1]) - integer(cu_seqlens, &[b]),
            KvCache::Dense { lengths: Some(lengths), .. }
            | KvCache::Continuous { lengths, .. }
            | KvCache::Paged { lengths, .. } => integer(lengths, &[b]),
            _ => unreachable!(),
        })
        .collect()
}

fn integer(tensor: &TensorRef<'_>, index: &[usize]) -> i64 {
    fn at<T: Index + Into<i64>>(tensor: &TensorRef<'_>, index: &[usize]) -> i64 {
        tensor.host::<T>().expect("the reference is on the host").at(index).into()
    }
    if tensor.dtype() == DType::U32 { at::<u32>(tensor, index) } else { at::<i32>(tensor, index) }
}

fn float(tensor: &TensorRef<'_>, head: usize) -> f32 {
    match tensor.dtype() {
        DType::F16 => tensor.host::<half::f16>().expect("the reference is on the host").at(&[head]).to_f32(),
        DType::BF16 => {
            tensor.host::<half::bf16>().expect("the reference is on the host").at(&[head]).to_f32()
        }
        _ => tensor.host::<f32>().expect("the reference is on the host").at(&[head]),
    }
}

/// Zeroes the first byte of the element that lies `beyond` elements after an element of the output.
fn poke(out: &TensorMut<'_>, index: &[usize], beyond: i64) {
    let element = (out.layout().offset(index) + beyond) * out.dtype().size() as i64;
    // SAFETY: tests call it for bytes inside the memory of `out`, on the host.
    unsafe { *out.as_mut_ptr().offset(element as isize) = 0 };
}

/// All mutants through a reduced table, together.
static SUMMARIES: LazyLock<BTreeMap<&str, Summary>> = LazyLock::new(|| {
    let mutants: Vec<Mutant> = MUTANTS
        .iter()
        .map(|(_, launch)| Mutant { inner: ReferenceBackend::new(), launch: *launch })
        .collect();
    let backends: Vec<&dyn Backend> = mutants.iter().map(|mutant| mutant as &dyn Backend).collect();
    let filter = Filter::all().budget(180_000_000).repeat_up_to(200_000);
    let summaries = conformance::run_all(&backends, &filter, EXPECTATIONS);
    MUTANTS.iter().map(|(name, _)| *name).zip(summaries).collect()
});

/// The mutant is caught, by complaints of one kind among others; says in how many cases of which rows.
fn assert_caught(mutant: &str, kind: fn(&Violation) -> bool) {
    let summary = &SUMMARIES[mutant];
    let caught = summary.violations.iter().filter(|(_, _, violation)| kind(violation)).count();
    assert!(caught > 0, "{mutant} is not caught: {summary}");
}

fn is_element(violation: &Violation) -> bool {
    matches!(violation, Violation::Element { .. })
}

#[test]
fn without_a_fault_nothing_is_reported() {
    SUMMARIES["none"].assert_clean();
}

#[test]
fn a_causal_mask_off_by_one_is_caught() {
    assert_caught("causal by one too many", is_element);
}

#[test]
fn alignment_at_the_wrong_corner_is_caught() {
    assert_caught("causal from the top left", is_element);
}

#[test]
fn a_sink_added_twice_is_caught() {
    assert_caught("sink added twice", |violation| {
        matches!(violation, Violation::Element { tensor: "lse", .. })
    });
    assert_caught("sink added twice", |violation| {
        matches!(violation, Violation::Element { tensor: "out", .. })
    });
}

#[test]
fn a_dropped_key_is_caught() {
    assert_caught("last key dropped", is_element);
}

#[test]
fn a_leak_of_nan_beyond_a_length_is_caught() {
    assert_caught(
        "one key too many",
        |violation| matches!(violation, Violation::Element { got, .. } if got.is_nan()),
    );
}

#[test]
fn a_row_written_past_its_length_is_caught() {
    assert_caught("padding rows written", |violation| matches!(violation, Violation::WrittenOutside { .. }));
}

#[test]
fn a_write_into_a_gap_between_rows_is_caught() {
    assert_caught("gaps written", |violation| matches!(violation, Violation::WrittenOutside { .. }));
}

#[test]
fn score_modifications_in_the_wrong_order_are_caught() {
    assert_caught("score modifications in reverse", is_element);
}

#[test]
fn an_ignored_softcap_is_caught() {
    // The reduced table is the cheapest part of each row, and has no softcap alone.
    let (_, launch) = MUTANTS.iter().find(|(name, _)| *name == "softcap ignored").expect("it is listed");
    let mutant = Mutant { inner: ReferenceBackend::new(), launch: *launch };
    let summary = conformance::run(&mutant, &Filter::only("f5/softcap_15*"));
    assert!(summary.violations.iter().any(|(_, _, violation)| is_element(violation)), "{summary}");
}

#[test]
fn an_ignored_scale_is_caught() {
    assert_caught("softmax_scale ignored", is_element);
}

#[test]
fn an_ignored_page_table_is_caught() {
    assert_caught("first page for all", is_element);
}

#[test]
fn a_log_sum_exp_of_the_wrong_base_is_caught() {
    assert_caught("lse in base 2", |violation| matches!(violation, Violation::Element { tensor: "lse", .. }));
}

#[test]
fn hidden_rows_that_average_are_caught() {
    assert_caught("hidden rows average", |violation| matches!(violation, Violation::HiddenRow { .. }));
}

#[test]
fn answers_that_change_between_runs_are_caught() {
    assert_caught("different every time", |violation| matches!(violation, Violation::NotRepeatable { .. }));
}

#[test]
fn a_refusal_that_nobody_listed_is_caught() {
    assert_caught("refuses odd heads", |violation| matches!(violation, Violation::Unlisted(_)));
}

#[test]
fn an_expectation_that_no_longer_holds_is_caught() {
    let outdated = [Expectation {
        backend: "reference",
        arch: "*",
        case: "f7/lengths/*",
        expected: Expected::Failure,
        reason: "it once failed",
    }];
    let backend = ReferenceBackend::new();
    let summaries = conformance::run_all(&[&backend], &Filter::only("f7/lengths/*"), &outdated);
    let violations = &summaries[0].violations;
    assert!(!violations.is_empty());
    assert!(violations.iter().all(|(_, _, violation)| matches!(violation, Violation::UnexpectedPass { .. })));
}
