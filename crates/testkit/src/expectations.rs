//! Which backend is expected not to pass which case, and why.
//!
//! An expectation that no longer holds fails the run, so this list says exactly what is missing.

use omniflash_core::BackendInfo;

/// What a backend is expected to do instead of passing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// It answers [`Error::Unsupported`](omniflash_core::Error::Unsupported).
    Unsupported,
    /// It fails or gives a wrong answer: a known defect.
    Failure,
}

/// One line of the list.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    /// Pattern of the backend's name, such as `cuda:*`; `*:*` is every GPU.
    pub backend: &'static str,
    /// Pattern of its architecture, such as `sm_9*`.
    pub arch: &'static str,
    /// Pattern of the names of cases.
    pub case: &'static str,
    /// What it does instead.
    pub expected: Expected,
    /// Why, in words for a user.
    pub reason: &'static str,
}

/// All that is known to be missing.
pub const EXPECTATIONS: &[Expectation] = &[
    Expectation {
        backend: "reference",
        arch: "*",
        case: "*/partitions=[2-9]*",
        expected: Expected::Unsupported,
        reason: "the reference computes whole rows",
    },
    Expectation {
        backend: "reference",
        arch: "*",
        case: "*/partitions=[1-9][0-9]*",
        expected: Expected::Unsupported,
        reason: "the reference computes whole rows",
    },
    Expectation {
        backend: "*:*",
        arch: "*",
        case: "f5/*closure*",
        expected: Expected::Unsupported,
        reason: "a GPU cannot call a Rust closure on every score; device source works",
    },
    Expectation {
        backend: "*:*",
        arch: "*",
        case: "f8/rising*",
        expected: Expected::Unsupported,
        reason: "a GPU cannot call a Rust closure on every score; device source works",
    },
    Expectation {
        backend: "*:*",
        arch: "*",
        case: "f8/falling*",
        expected: Expected::Unsupported,
        reason: "a GPU cannot call a Rust closure on every score; device source works",
    },
    Expectation {
        backend: "*:*",
        arch: "*",
        case: "f2/any=300_*",
        expected: Expected::Unsupported,
        reason: "GPU kernels take head_dim and value_dim up to 256",
    },
    Expectation {
        backend: "*:*",
        arch: "*",
        case: "f2/any=384_*",
        expected: Expected::Unsupported,
        reason: "GPU kernels take head_dim and value_dim up to 256",
    },
    Expectation {
        backend: "*:*",
        arch: "*",
        case: "f2/any=576_*",
        expected: Expected::Unsupported,
        reason: "GPU kernels take head_dim and value_dim up to 256",
    },
    Expectation {
        backend: "*:*",
        arch: "*",
        case: "seed/host_any_*_D300*",
        expected: Expected::Unsupported,
        reason: "GPU kernels take head_dim and value_dim up to 256",
    },
    Expectation {
        backend: "*:*",
        arch: "*",
        case: "seed/host_any_*_D384*",
        expected: Expected::Unsupported,
        reason: "GPU kernels take head_dim and value_dim up to 256",
    },
];

/// The expectation that a list holds for a backend and a case.
pub fn lookup<'e>(list: &'e [Expectation], info: &BackendInfo, case: &str) -> Option<&'e Expectation> {
    list.iter().find(|expectation| {
        matches(expectation.backend, &info.name)
            && matches(expectation.arch, &info.arch)
            && matches(expectation.case, case)
    })
}

/// Whether a name matches a pattern: `*` is any text, `[a-z]` one character of a range, all else itself.
pub fn matches(pattern: &str, name: &str) -> bool {
    fn go(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|skipped| go(rest, &name[skipped..])),
            [b'[', low, b'-', high, b']', rest @ ..] => {
                name.first().is_some_and(|character| (low..=high).contains(&character))
                    && go(rest, &name[1..])
            }
            [character, rest @ ..] => name.first() == Some(character) && go(rest, &name[1..]),
        }
    }
    go(pattern.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        assert!(matches("*", "") && matches("f7/*", "f7/page") && matches("a*b*c", "aXbYbZc"));
        assert!(!matches("f7", "f7/page") && !matches("a*b", "abc"));
        assert!(matches("*=[2-9]*", "partitions=64") && !matches("*=[2-9]*", "partitions=1"));
    }
}
