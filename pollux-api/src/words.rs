//! Enums whose variants are one word each: in JSON, in options, and for people.

use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};

/// What a client makes of a word that it does not know; nobody sends it.
pub(crate) const UNKNOWN: &str = "unknown";

/// Declares such an enum, each word written once. Attributes of a variant stand behind it, in brackets.
macro_rules! words {
    (
        $(#[doc = $doc:literal])+
        $vis:vis enum $name:ident $(: $($derive:ident),+)? {
            $( $(#[doc = $variant_doc:literal])+ $variant:ident = $word:literal $([$($attribute:meta),+])?, )+
        }
    ) => {
        $(#[doc = $doc])+
        $(#[derive($($derive),+)])?
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Serialize, serde::Deserialize)]
        $vis enum $name {
            $( $(#[doc = $variant_doc])+ $($(#[$attribute])+)? #[serde(rename = $word)] $variant, )+
        }

        impl $name {
            /// Every variant, in the order of the declaration.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )+];

            /// Its word.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => $word, )+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $crate::words::schema(concat!($($doc),+), &[$( ($word, concat!($($variant_doc),+)), )+])
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }
    };
}

pub(crate) use words;

/// The schema of an enum of words, with what each means.
pub(crate) fn schema(doc: &str, words: &[(&str, &str)]) -> RefOr<Schema> {
    let words = || words.iter().filter(|(word, _)| *word != UNKNOWN);
    let meanings: Vec<String> = words().map(|(word, doc)| format!("- `{word}`: {}", doc.trim())).collect();
    let description = format!("{}\n\n{}", doc.trim(), meanings.join("\n"));
    let words = words().map(|(word, _)| *word);
    ObjectBuilder::new().schema_type(Type::String).description(Some(description)).enum_values(Some(words)).into()
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    words! {
        /// A color.
        enum Color: Default {
            /// The first.
            Red = "red",
            /// The second.
            LightBlue = "light-blue",
            /// Another one.
            Unknown = "unknown" [default, serde(other)],
        }
    }

    #[test]
    fn a_word_is_the_same_in_json_and_for_people() {
        for color in Color::ALL {
            assert_eq!(serde_json::to_value(color).unwrap(), color.name());
            assert_eq!(serde_json::from_value::<Color>(color.name().into()).unwrap(), *color);
            assert_eq!(color.to_string(), color.name());
        }
        assert_eq!(serde_json::from_str::<Color>("\"mauve\"").unwrap(), Color::Unknown);
        assert_eq!((Color::LightBlue.name(), Color::default()), ("light-blue", Color::Unknown));
    }

    #[test]
    fn its_schema_names_the_words_that_are_sent() {
        let schema = serde_json::to_value(Color::schema()).unwrap();
        assert_eq!(schema["enum"], serde_json::json!(["red", "light-blue"]));
        assert_eq!(schema["description"], "A color.\n\n- `red`: The first.\n- `light-blue`: The second.");
    }
}
