//! An error as text, together with what caused it.

use std::error::Error;

/// The texts of an error and of its sources, outermost first. A source whose words the error before it ends
/// with is left out.
#[must_use]
pub fn causes(error: &dyn Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !texts.last().is_some_and(|outer| outer.ends_with(&text)) {
            texts.push(text);
        }
        next = source.source();
    }
    texts
}

/// [`causes`] in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    causes(error).join(": ")
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as &dyn Error)
        }
    }

    #[test]
    fn every_cause_is_told_once() {
        let inner = Layer("no space left", None);
        let wrapper = Layer("no space left", Some(Box::new(inner)));
        let middle = Layer("cannot write: no space left", Some(Box::new(wrapper)));
        let outer = Layer("disk image", Some(Box::new(middle)));
        assert_eq!(causes(&outer), ["disk image", "cannot write: no space left"]);
        assert_eq!(chain(&outer), "disk image: cannot write: no space left");
        assert_eq!(chain(&Layer("alone", None)), "alone");
    }
}
