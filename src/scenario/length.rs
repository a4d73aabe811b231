//! Prompt and output lengths: a plain number of tokens, or a distribution.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// A number of tokens, fixed or drawn for each request.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Length {
    Fixed(u32),
    Drawn(Drawn),
}

/// A distribution of lengths. Draws are rounded to whole tokens and held between `min` and `max`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    #[serde(default)]
    pub dist: Distribution,
    /// Mean, before `min` and `max` are applied; "uniform" does without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// Coefficient of variation of "lognormal" (1 when not given).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cv: Option<f64>,
    /// Shortest length (1 when not given).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Longest length (the model's context when not given).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// Shapes that lengths are drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Always `mean`.
    Fixed,
    /// Every length from `min` to `max` equally often.
    Uniform,
    /// Memoryless, with mean `mean`.
    Exponential,
    /// What lengths of real traffic look like: `mean` and `cv`.
    #[default]
    Lognormal,
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number of tokens or a table such as { dist = \"lognormal\", mean = 4096, cv = 1.0 }")
            }

            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Length, E> {
                u32::try_from(v)
                    .map(Length::Fixed)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(v), &self))
            }

            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Length, E> {
                u32::try_from(v)
                    .map(Length::Fixed)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(v), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Length, A::Error> {
                Drawn::deserialize(de::value::MapAccessDeserializer::new(map)).map(Length::Drawn)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
