//! The options of a case, as JSON.

use std::fmt;
use std::str::FromStr;

use omniflash::{Algorithm, AttentionConfig, F32Arithmetic, Swizzle};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::error::Fault;

/// What a case asks beside its tensors. All keys are optional.
///
/// ```
/// use omniflash_cli::case_file::{MaskOption, Options};
/// let options = Options::from_json(br#"{"mask": {"sliding_window": {"left": 127, "right": 0}}, "lse": true}"#)?;
/// assert_eq!(options.mask, Some(MaskOption::SlidingWindow { left: 127, right: 0 }));
/// assert!(Options::from_json(br#"{"msak": "causal"}"#).is_err());
/// # Ok::<(), omniflash_cli::case_file::Fault>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Multiplies every dot product; default 1 / sqrt(head_dim).
    #[serde(deserialize_with = "finite", skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f32>,
    /// Which keys a query sees; default all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<MaskOption>,
    /// Bounds scores: `softcap * tanh(score / softcap)`.
    #[serde(deserialize_with = "finite", skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f32>,
    /// Adds ALiBi, with the tensor `alibi_slopes` or the default slopes; that tensor alone asks for it too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alibi: Option<bool>,
    /// Pieces into which keys are split; the same as `config.num_partitions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_partitions: Option<usize>,
    /// Tuning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigOptions>,
    /// Whether the log-sum-exp is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lse: Option<bool>,
}

/// A mask by name, or a tree of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs, reason = "as the variants of omniflash::Mask of the same names")]
pub enum MaskOption {
    None,
    Causal,
    SlidingWindow { left: usize, right: usize },
    Chunked { size: usize },
    ChunkedCausal { size: usize },
    PrefixLm,
    Document,
    And(Box<MaskOption>, Box<MaskOption>),
    Or(Box<MaskOption>, Box<MaskOption>),
    Not(Box<MaskOption>),
}

/// The fields of [`AttentionConfig`], by their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "as the fields of AttentionConfig of the same names")]
pub struct ConfigOptions {
    #[serde(deserialize_with = "named", serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_m: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warp_m: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warp_n: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_pipeline_stages: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k_group_size: Option<usize>,
    #[serde(deserialize_with = "named", serialize_with = "swizzle", skip_serializing_if = "Option::is_none")]
    pub swizzle: Option<Swizzle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_partitions: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_within_block: Option<bool>,
    #[serde(deserialize_with = "named", serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub f32_arithmetic: Option<F32Arithmetic>,
}

impl Options {
    /// Parses the JSON of an options file.
    ///
    /// # Errors
    /// [`Fault::Malformed`] with the place of the value that is wrong, what it is and what was expected.
    pub fn from_json(json: &[u8]) -> Result<Self, Fault> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let options: Options = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let message = error.into_inner().to_string();
            Fault::malformed(if path == "." { message } else { format!("{path}: {message}") })
        })?;
        deserializer.end().map_err(|error| Fault::malformed(error.to_string()))?;
        // The parser above takes a list for an object, field by field: too clever for a format.
        let value: Value =
            serde_json::from_slice(json).map_err(|error| Fault::malformed(error.to_string()))?;
        check_objects("", &value)?;
        options.check()?;
        Ok(options)
    }

    /// The JSON of an options file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("no key is not a string, and no value fails to be written")
    }

    /// The tuning, with the short form of `num_partitions`.
    pub(super) fn attention_config(&self) -> AttentionConfig {
        let mut config = self.config.as_ref().map(ConfigOptions::attention_config).unwrap_or_default();
        config.num_partitions = self.num_partitions.or(config.num_partitions);
        config
    }

    fn check(&self) -> Result<(), Fault> {
        let nested = self.config.as_ref().and_then(|config| config.num_partitions);
        match (self.num_partitions, nested) {
            (Some(outer), Some(inner)) if outer != inner => {
                Err(Fault::value("num_partitions", outer, format!("{inner} as config.num_partitions")))
            }
            _ => Ok(()),
        }
    }
}

impl ConfigOptions {
    fn attention_config(&self) -> AttentionConfig {
        AttentionConfig {
            algorithm: self.algorithm.unwrap_or_default(),
            block_m: self.block_m,
            block_n: self.block_n,
            block_k: self.block_k,
            warp_m: self.warp_m,
            warp_n: self.warp_n,
            num_pipeline_stages: self.num_pipeline_stages,
            k_group_size: self.k_group_size,
            swizzle: self.swizzle,
            num_partitions: self.num_partitions,
            split_within_block: self.split_within_block,
            f32_arithmetic: self.f32_arithmetic,
        }
    }
}

impl MaskOption {
    /// Whether some mask of the tree satisfies a condition.
    pub(super) fn contains(&self, condition: &dyn Fn(&MaskOption) -> bool) -> bool {
        condition(self)
            || match self {
                MaskOption::And(a, b) | MaskOption::Or(a, b) => {
                    a.contains(condition) || b.contains(condition)
                }
                MaskOption::Not(mask) => mask.contains(condition),
                _ => false,
            }
    }
}

/// Lists stand only for the two masks of `and` and `or`.
fn check_objects(key: &str, value: &Value) -> Result<(), Fault> {
    match value {
        Value::Array(_) if !matches!(key, "and" | "or") => Err(Fault::value(
            if key.is_empty() { "the file" } else { key },
            "a list",
            "an object with named fields",
        )),
        Value::Array(items) => items.iter().try_for_each(|item| check_objects("mask", item)),
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| check_objects(key, value)),
        _ => Ok(()),
    }
}

/// A number that f32 can hold.
fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    let Some(value) = Option::<f64>::deserialize(deserializer)? else { return Ok(None) };
    let narrow = value as f32;
    if !narrow.is_finite() {
        return Err(D::Error::custom(format!("the value is {value:e}, expected a number that f32 can hold")));
    }
    Ok(Some(narrow))
}

/// A value by its name.
fn named<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::<String>::deserialize(deserializer)?
        .map(|name| name.parse().map_err(D::Error::custom))
        .transpose()
}

fn display<S: Serializer>(value: &Option<impl fmt::Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

fn swizzle<S: Serializer>(value: &Option<Swizzle>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(Swizzle::None) => serializer.serialize_str("none"),
        Some(swizzle) => serializer.collect_str(&format_args!("b{}", swizzle.bytes())),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(json: &str) -> String {
        Options::from_json(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_mask_is_a_name_or_a_tree() {
        let json =
            br#"{"mask": {"or": ["causal", {"not": {"and": [{"chunked": {"size": 4}}, "document"]}}]}}"#;
        let expected = MaskOption::Or(
            Box::new(MaskOption::Causal),
            Box::new(MaskOption::Not(Box::new(MaskOption::And(
                Box::new(MaskOption::Chunked { size: 4 }),
                Box::new(MaskOption::Document),
            )))),
        );
        assert_eq!(Options::from_json(json).unwrap().mask, Some(expected));
    }

    #[test]
    fn every_option_survives_a_round_trip() {
        let options = Options {
            softmax_scale: Some(0.125),
            mask: Some(MaskOption::ChunkedCausal { size: 256 }),
            softcap: Some(30.0),
            alibi: Some(true),
            num_partitions: Some(4),
            config: Some(ConfigOptions {
                algorithm: Some(Algorithm::Flash2),
                block_m: Some(64),
                swizzle: Some(Swizzle::B128),
                split_within_block: Some(false),
                f32_arithmetic: Some(F32Arithmetic::Exact),
                ..ConfigOptions::default()
            }),
            lse: Some(true),
        };
        assert_eq!(Options::from_json(options.to_json().as_bytes()).unwrap(), options);
        assert_eq!(Options::from_json(b"{}").unwrap(), Options::default());
    }

    #[test]
    fn errors_name_the_key_the_value_and_what_was_expected() {
        for (json, parts) in [
            (r#"{"msak": 1}"#, ["`msak`", "softmax_scale"]),
            (r#"{"mask": "diagonal"}"#, ["mask: unknown variant `diagonal`", "sliding_window"]),
            (r#"{"mask": {"sliding_window": {"left": -1, "right": 0}}}"#, ["left", "-1"]),
            (r#"{"mask": {"sliding_window": {"left": 1}}}"#, ["sliding_window", "right"]),
            (r#"{"mask": {"sliding_window": {"lft": 1, "right": 0}}}"#, ["`lft`", "`left`"]),
            (r#"{"mask": {"and": ["causal"]}}"#, ["mask.and", "length 1"]),
            (r#"{"mask": {"and": ["causal", "none", "none"]}}"#, ["mask.and", "trailing"]),
            (r#"{"softmax_scale": 1e300}"#, ["softmax_scale", "1e300"]),
            (r#"{"softmax_scale": NaN}"#, ["softmax_scale", "line 1"]),
            (r#"{"softcap": "30"}"#, ["softcap", "30"]),
            (r#"{"lse": 1}"#, ["lse", "boolean"]),
            (r#"{"num_partitions": 1.5}"#, ["num_partitions", "1.5"]),
            (r#"{"config": {"algorithm": "flash9"}}"#, ["config.algorithm is flash9", "flash2"]),
            (r#"{"config": {"blockm": 64}}"#, ["config", "`blockm`"]),
            (r#"{"num_partitions": 2, "config": {"num_partitions": 4}}"#, ["num_partitions is 2", "4"]),
            (r#"{"lse": true, "lse": true}"#, ["duplicate", "lse"]),
            (r#"{"lse": true} x"#, ["trailing", "column"]),
            (r#"[0.5]"#, ["the file is a list", "object"]),
            (r#"{"mask": {"chunked": [4]}}"#, ["chunked is a list", "object"]),
            ("", ["EOF", "line 1"]),
        ] {
            let fault = fault(json);
            for part in parts {
                assert!(fault.contains(part), "{json}: {fault:?} lacks {part:?}");
            }
            assert!(!fault.contains('\n'), "{fault:?}");
        }
    }

    #[test]
    fn a_deep_tree_is_an_error_and_no_overflow() {
        let deep = format!("{{\"mask\": {}\"causal\"{}}}", "{\"not\": ".repeat(100_000), "}".repeat(100_000));
        assert!(fault(&deep).contains("recursion limit"));
    }
}
