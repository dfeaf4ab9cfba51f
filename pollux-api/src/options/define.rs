//! How options are defined: a struct whose doc comments are the help, and whose fields are the keys.

/// The key of a field: its name, unless it has another one.
macro_rules! option_key {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

/// Declares a struct of options. Those of `required` must be given, those of `optional` may be left out,
/// those of `tuned by` have a default; they make up a second struct, in which each has a value.
macro_rules! option_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            required {
                $( $(#[doc = $r_doc:literal])+ $r_field:ident $(as $r_key:literal)? ($r_value:literal): $r_type:ty, )*
            }
            optional {
                $( $(#[doc = $o_doc:literal])+ $o_field:ident $(as $o_key:literal)? ($o_value:literal): $o_type:ty, )*
            }
        }
        $(
            $(#[$t_meta:meta])*
            tuned by $tuning:ident {
                $( $(#[doc = $t_doc:literal])+ $t_field:ident ($t_value:literal): $t_type:ty = $t_default:expr, )*
            }
        )?
    ) => {
        $(#[$meta])*
        pub struct $name {
            $( $(#[doc = $r_doc])+ pub $r_field: $r_type, )*
            $( $(#[doc = $o_doc])+ pub $o_field: Option<$o_type>, )*
            $($(
                $(#[doc = $t_doc])+
                #[schema(default = json!($tuning::default().$t_field))]
                pub $t_field: Option<$t_type>,
            )*)?
        }

        impl $name {
            /// Takes what is given of them.
            ///
            /// # Errors
            /// When one that must be given is missing, or a value is not what it should be.
            pub fn read(options: &$crate::options::Options) -> Result<Self, $crate::options::OptionError> {
                Ok(Self {
                    $( $r_field: options.required(option_key!($r_field $($r_key)?))?, )*
                    $( $o_field: options.value(option_key!($o_field $($o_key)?))?, )*
                    $( $( $t_field: options.value(stringify!($t_field))?, )* )?
                })
            }

            /// Those without a default: first those that must be given.
            #[must_use]
            pub fn help() -> Vec<$crate::options::OptionHelp> {
                let required = Some("required".to_owned());
                vec![
                    $( $crate::options::OptionHelp::new(
                        option_key!($r_field $($r_key)?), $r_value, concat!($($r_doc),+), required.clone(),
                    ), )*
                    $( $crate::options::OptionHelp::new(
                        option_key!($o_field $($o_key)?), $o_value, concat!($($o_doc),+), None,
                    ), )*
                ]
            }
        }

        $(
            $(#[$t_meta])*
            pub struct $tuning {
                $( $(#[doc = $t_doc])+ pub $t_field: $t_type, )*
            }

            impl Default for $tuning {
                fn default() -> Self {
                    Self { $( $t_field: $t_default, )* }
                }
            }

            impl $tuning {
                /// Takes what is given of them.
                ///
                /// # Errors
                /// When a value is not what it should be.
                pub fn read(options: &$crate::options::Options) -> Result<Self, $crate::options::OptionError> {
                    Ok(Self { $( $t_field: options.value_or(stringify!($t_field), $t_default)?, )* })
                }

                /// All of them.
                #[must_use]
                pub fn help() -> Vec<$crate::options::OptionHelp> {
                    vec![$( $crate::options::OptionHelp::new(
                        stringify!($t_field), $t_value, concat!($($t_doc),+), Some($t_default.to_string()),
                    ), )*]
                }
            }

            impl $name {
                /// Those with a default, as given or by default.
                #[must_use]
                pub fn tuning(&self) -> $tuning {
                    $tuning { $( $t_field: self.$t_field.unwrap_or($t_default), )* }
                }
            }
        )?
    };
}

pub(super) use {option_key, option_struct};
