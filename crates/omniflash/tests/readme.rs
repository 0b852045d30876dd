//! The errors that the README explains are those that are printed.

use std::path::Path;
use std::sync::Arc;

use omniflash::{
    AttentionOptions, Error, KvCache, Mask, Query, ReferenceBackend, Registry, Result, TensorMut, TensorRef,
    attention_into,
};

const HEAD_DIM: usize = 8;

/// The error of attention by the reference, for one sequence of two queries and keys.
fn refusal(
    num_heads: usize,
    num_kv_heads: usize,
    page_table: Option<[i32; 4]>,
    options: &AttentionOptions<'_>,
) -> Error {
    let (q, kv) = (vec![0.5f32; 2 * num_heads * HEAD_DIM], vec![0.5f32; 8 * num_kv_heads * HEAD_DIM]);
    let mut out = q.clone();
    let attend = |out: &mut [f32]| -> Result<()> {
        let q = TensorRef::from_slice(&q, &[1, 2, num_heads, HEAD_DIM])?;
        let out = TensorMut::from_slice(out, &[1, 2, num_heads, HEAD_DIM])?;
        let lengths = [8];
        let kv_cache = match &page_table {
            None => {
                let k = TensorRef::from_slice(&kv, &[1, 8, num_kv_heads, HEAD_DIM])?;
                KvCache::dense(k.clone(), k)
            }
            Some(table) => {
                let k = TensorRef::from_slice(&kv, &[4, 2, num_kv_heads, HEAD_DIM])?;
                KvCache::Paged {
                    k: k.clone(),
                    v: k,
                    page_table: TensorRef::from_slice(table, &[1, 4])?,
                    lengths: TensorRef::from_slice(&lengths, &[1])?,
                    max_seqlen: None,
                }
            }
        };
        attention_into(&ReferenceBackend::new(), Query::padded(q), kv_cache, out, None, options)
    };
    attend(&mut out).expect_err("it is refused")
}

/// What a GPU without the closure's positions says, planned for one that is not here.
fn closure_with_query_start() -> Error {
    let (q, start) = ([0.5f32; 2 * HEAD_DIM], [0]);
    let mut out = q;
    let plan = |out: &mut [f32]| {
        let shape = [1, 2, 1, HEAD_DIM];
        let q = TensorRef::from_slice(&q, &shape)?;
        let query = Query::padded(q.clone());
        let start = TensorRef::from_slice(&start, &[1])?;
        let options = AttentionOptions::new().mask(Mask::from_fn(|_, _, q, k| k <= q)).query_start(start);
        let out = TensorMut::from_slice(out, &shape)?;
        let problem =
            omniflash::AttentionProblem::new(query, KvCache::dense(q.clone(), q), out, None, &options)?;
        omniflash_cuda::OfflinePlanner::new("sm_90", Arc::new(omniflash_cuda::kernel_store()))?.plan(&problem)
    };
    plan(&mut out).expect_err("it is refused")
}

fn errors() -> Vec<Error> {
    let mut errors = vec![
        refusal(1, 1, None, &AttentionOptions::new().num_partitions(2)),
        refusal(3, 2, None, &AttentionOptions::new()),
        refusal(1, 1, Some([0, 1, 2, 99]), &AttentionOptions::new()),
        closure_with_query_start(),
        // These need a GPU, or a machine with one and no compiler.
        Error::Device { argument: "q".into(), found: "cpu".into(), expected: "cuda:0".into() },
        Error::NoKernel { arch: "sm_90".into(), id: "fwd-sm_90-bf16".into(), hint: String::new() },
    ];
    errors.push(Registry::discover().get("cuda").err().unwrap_or(Error::Absent {
        backend: "cuda".into(),
        reason: "the driver library cannot be loaded".into(),
    }));
    errors
}

/// Whether the parts of a quotation, between its dots, stand in a text one after another.
fn quotes(quotation: &str, text: &str) -> bool {
    let mut rest = text;
    quotation.split("...").all(|part| match rest.split_once(part.trim()) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[test]
fn every_error_that_the_readme_explains_is_printed_as_it_is_quoted() {
    let readme =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let (_, section) = readme.split_once("## Errors").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let quotations: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let texts: Vec<String> = errors().iter().map(ToString::to_string).collect();
    for quotation in &quotations {
        assert!(texts.iter().any(|text| quotes(quotation, text)), "{quotation} is not among {texts:#?}");
    }
    assert_eq!(quotations.len(), texts.len(), "{quotations:#?}");
}

#[test]
fn a_quotation_may_leave_out_what_stands_between_its_parts() {
    assert!(quotes("no kernel ... for sm_90", "no kernel fwd for sm_90: install"));
    assert!(!quotes("for sm_90 ... no kernel", "no kernel fwd for sm_90: install"));
}
