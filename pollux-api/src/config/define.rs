//! How a part of the configuration is defined: a struct whose fields are the names in JSON, the keys on the
//! command line, their help, their defaults and their limits.
//!
//! ```text
//! /// What it means, in the help and in the OpenAPI document.
//! field [hidden] as "key" also "alias" ("VALUE" as Through, 1..=9): Type = default,
//! ```
//!
//! - `as`: the key where it is not the field's name; `also`: another name of it, in JSON too.
//! - `("VALUE")`: it is an option, and this is what to write for its value; `""` keeps it out of the help.
//!   `as Through`: its text is read as another type. A range is its limit.
//! - `= default`: it may be missing. `[or default]`: in JSON it must be there. Neither: the type is an
//!   [`Option`], which is left out of JSON while it is `None`.
//! - `[hidden]`: a flag that is left out of JSON while it is off.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, Error};

use super::validate::ConfigError;

/// Declares such a struct. `refuses`: keys of Cloud Hypervisor that are refused by name. `internal`: fields
/// that are not configured.
macro_rules! config_struct {
    (
        $(#[doc = $doc:literal])+
        #[derive($($derive:ident),+)]
        pub struct $name:ident($flag:literal) {
            $(
                $(#[doc = $field_doc:literal])+
                $(#[schema($($schema:tt)+)])?
                $field:ident $([$mark:ident])? $(as $key:literal)? $(also $also:literal)?
                    $(($value:tt $(as $via:ty)? $(, $range:expr)?))?:
                    $type:ty $([or $fallback:expr])? $(= $default:expr)?,
            )+
        }
        $(refuses [$($refused:literal),+ $(,)?])?
        $(internal { $( $(#[doc = $own_doc:literal])+ $own:ident: $own_type:ty = $own_default:expr, )+ })?
    ) => {
        $(#[doc = $doc])+
        #[derive($($derive,)+ utoipa::ToSchema)]
        pub struct $name {
            $(
                $(#[doc = $field_doc])+
                $(#[schema($($schema)+)])?
                $(#[schema(required = false, default = json!($crate::config::define::typed::<$type>($default)))])?
                pub $field: $type,
            )+
            $($( $(#[doc = $own_doc])+ #[schema(ignore)] pub $own: $own_type, )+)?
        }

        impl Default for $name {
            fn default() -> Self {
                $( let $field: $type = absent!([$($fallback)? $($default)?]); )+
                Self { $($field,)+ $($($own: $own_default,)+)? }
            }
        }

        impl $name {
            #[doc = concat!("From the text after `", $flag, "`.")]
            ///
            /// # Errors
            /// When the text does not follow the grammar or a value is not what it should be.
            pub fn from_option(text: &str) -> Result<Self, $crate::options::OptionError> {
                let keys = [$( config_keys!($field [$($key)?] [$($also)?] [$($value)?]), )+].concat();
                let refused: &[&str] = &[$($($refused),+)?];
                Self::from_options(&$crate::options::Options::parse($flag, text, &keys, refused)?)
            }

            /// From options that have been taken apart.
            ///
            /// # Errors
            /// When a value is not what it should be.
            pub fn from_options(options: &$crate::options::Options) -> Result<Self, $crate::options::OptionError> {
                $(
                    let $field: $type = read_option!(
                        options, $field [$($key)?] [$($also)?] [$($value $(as $via)?)?] [$($fallback)? $($default)?]
                    );
                )+
                Ok(Self { $($field,)+ $($($own: $own_default,)+)? })
            }

            /// Its options.
            #[must_use]
            pub fn help() -> Vec<$crate::options::OptionHelp> {
                let _default = Self::default();
                let help = [$(
                    config_help!(
                        _default.$field, $field [$($key)?] [$($value [$($via)?] [$($range)?])?]
                        [concat!($($field_doc),+)] [$($fallback)? $($default)?]
                    ),
                )+];
                help.into_iter().flatten().collect()
            }

            /// Whether its numbers are within their limits; `at` is where it is in the configuration.
            ///
            /// # Errors
            /// The first one that is not, by the name of its field.
            pub fn check_limits(&self, at: &str) -> Result<(), $crate::config::ConfigError> {
                let _ = at;
                $( check_limit!(self.$field, at, $field [$($($range)?)?]); )+
                Ok(())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct;
                let shown = [$( !is_left_out!(self.$field, [$($mark)?] [$($fallback)? $($default)?]), )+];
                let count = shown.iter().filter(|shown| **shown).count();
                let mut json = serializer.serialize_struct(stringify!($name), count)?;
                let mut shown = shown.into_iter();
                $(
                    if shown.next().unwrap_or_default() {
                        json.serialize_field(stringify!($field), &self.$field)?;
                    }
                )+
                json.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // Called like the type, since errors name it.
                #[derive(serde::Deserialize)]
                struct $name {
                    $(
                        // Only what has a default may be missing; the name of the default makes it so.
                        $( #[doc = stringify!($default)] #[serde(default)] )?
                        $( #[serde(alias = $also)] )?
                        $field: $crate::config::define::Given<$type>,
                    )+
                }
                let given = $name::deserialize(deserializer)?;
                Ok(Self {
                    $( $field: take_given!(given.$field, $field [$($fallback)?] [$($default)?]), )+
                    $($($own: $own_default,)+)?
                })
            }
        }
    };
}

/// What a field is when it is not given.
macro_rules! absent {
    ([]) => {
        None
    };
    ([$default:expr]) => {
        $default
    };
}

/// The key of a field.
macro_rules! config_key {
    ($field:ident []) => {
        stringify!($field)
    };
    ($field:ident [$key:literal]) => {
        $key
    };
}

/// The keys of a field that is an option.
macro_rules! config_keys {
    ($field:ident $key:tt $also:tt []) => {
        [].as_slice()
    };
    ($field:ident $key:tt [$($also:literal)?] [$value:tt]) => {
        [config_key!($field $key) $(, $also)?].as_slice()
    };
}

macro_rules! read_option {
    ($options:ident, $field:ident $key:tt $also:tt [] $default:tt) => {
        absent!($default)
    };
    ($options:ident, $field:ident $key:tt [] [$value:tt] $default:tt) => {
        or_absent!($options.value(config_key!($field $key))?, $default)
    };
    ($options:ident, $field:ident $key:tt [$also:literal] [$value:tt] []) => {
        $options.value(config_key!($field $key))?.or($options.value($also)?)
    };
    ($options:ident, $field:ident $key:tt [] [$value:tt as $via:ty] $default:tt) => {
        or_absent!($options.value::<$via>(config_key!($field $key))?.map(Into::into), $default)
    };
}

macro_rules! or_absent {
    ($value:expr, []) => {
        $value
    };
    ($value:expr, [$default:expr]) => {
        $value.unwrap_or($default)
    };
}

macro_rules! config_help {
    ($value:expr, $field:ident $key:tt [] $doc:tt $default:tt) => {
        None
    };
    ($value:expr, $field:ident $key:tt ["" $via:tt $range:tt] $doc:tt $default:tt) => {
        None
    };
    ($value:expr, $field:ident $key:tt [$write:tt $via:tt $range:tt] [$doc:expr] $default:tt) => {{
        let default = default_text!($value, $via $default);
        let option = $crate::options::OptionHelp::new(config_key!($field $key), $write, $doc, default);
        Some(with_range!(option, $range))
    }};
}

macro_rules! default_text {
    ($value:expr, $via:tt []) => {
        None
    };
    ($value:expr, [] [$default:expr]) => {
        Some($crate::options::OptionText::option_text(&$value))
    };
    ($value:expr, [$via:ty] [$default:expr]) => {
        Some($crate::options::OptionText::option_text(&<$via>::from($value.clone())))
    };
}

macro_rules! with_range {
    ($option:expr, []) => {
        $option
    };
    ($option:expr, [$range:expr]) => {
        $option.within(&$range)
    };
}

macro_rules! check_limit {
    ($value:expr, $at:ident, $field:ident []) => {};
    ($value:expr, $at:ident, $field:ident [$range:expr]) => {
        $crate::config::define::check_number(|| format!("{}.{}", $at, stringify!($field)), &$value, &$range)?;
    };
}

macro_rules! is_left_out {
    ($value:expr, [] []) => {
        $value.is_none()
    };
    ($value:expr, [] [$default:expr]) => {
        false
    };
    ($value:expr, [hidden] [$default:expr]) => {
        !$value
    };
}

macro_rules! take_given {
    ($given:expr, $field:ident [] []) => {
        $given.unwrap_or_else(|| None)
    };
    ($given:expr, $field:ident [] [$default:expr]) => {
        $given.unwrap_or_else(|| $default)
    };
    ($given:expr, $field:ident [$fallback:expr] []) => {
        $given.required(stringify!($field))?
    };
}

/// `value`, of this type.
pub(super) fn typed<T>(value: T) -> T {
    value
}

/// A field of JSON, if it is there.
pub(super) struct Given<T>(Option<T>);

impl<T> Default for Given<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(|value| Self(Some(value)))
    }
}

impl<T> Given<T> {
    pub(super) fn unwrap_or_else(self, default: impl FnOnce() -> T) -> T {
        self.0.unwrap_or_else(default)
    }

    pub(super) fn required<E: Error>(self, field: &'static str) -> Result<T, E> {
        self.0.ok_or_else(|| E::missing_field(field))
    }
}

/// A number, or the place for one.
pub(super) trait MaybeNumber<T> {
    fn number(&self) -> Option<T>;
}

impl<T: Copy> MaybeNumber<T> for T {
    fn number(&self) -> Option<T> {
        Some(*self)
    }
}

impl<T: Copy> MaybeNumber<T> for Option<T> {
    fn number(&self) -> Option<T> {
        *self
    }
}

/// Whether a number, if there is one, is within its limits.
pub(super) fn check_number<T: Copy + Display + PartialOrd>(
    field: impl FnOnce() -> String,
    value: &impl MaybeNumber<T>,
    limits: &RangeInclusive<T>,
) -> Result<(), ConfigError> {
    match value.number().filter(|number| !limits.contains(number)) {
        None => Ok(()),
        Some(number) => {
            let problem = format!("must be {} to {}, not {number}", limits.start(), limits.end());
            Err(ConfigError::Invalid { field: field(), problem })
        }
    }
}
