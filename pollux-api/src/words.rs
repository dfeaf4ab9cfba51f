//! Enums whose variants are one word each: in JSON, in options, and for people.

/// Declares such an enum, each word written once.
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $( $(#[$variant_meta:meta])* $variant:ident = $word:literal, )+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        $vis enum $name {
            $( $(#[$variant_meta])* #[serde(rename = $word)] $variant, )+
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
    };
}

pub(crate) use words;

#[cfg(test)]
mod tests {
    words! {
        #[derive(Default)]
        enum Color {
            /// The first.
            Red = "red",
            LightBlue = "light-blue",
            #[default]
            #[serde(other)]
            Unknown = "unknown",
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
}
