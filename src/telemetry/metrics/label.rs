//! Labels of metrics: each is an enum, so that a value without a name does not compile.
//!
//! The files of this directory declare their labels with the macro `label_enum!`. Other modules
//! pass the variants to the methods of [`Metrics`](super::Metrics).

use metrics::SharedString;

/// The values that a label can have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LabelValues {
    /// One of these names.
    Fixed(Vec<&'static str>),
    /// A name that depends on the configuration. The text describes it.
    Configured(&'static str),
}

/// A type whose values are the values of one label.
pub(super) trait Label {
    /// The name of the label.
    const KEY: &'static str;

    /// Returns all values.
    fn values() -> LabelValues;

    /// Returns the name of this value.
    fn value(&self) -> SharedString;
}

/// A label with a fixed list of values.
pub(super) trait LabelEnum: Label + Copy + 'static {
    /// Every value, in the order of declaration.
    const ALL: &'static [Self];

    /// The position in [`LabelEnum::ALL`].
    fn index(self) -> usize;
}

/// Declares the enum of a label: the label's name, then each variant with its name on the wire.
macro_rules! label_enum {
    (
        $(#[$attribute:meta])*
        pub enum $label:ident: $key:literal {
            $($(#[$comment:meta])* $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum $label {
            $($(#[$comment])* $variant,)+
        }

        impl $label {
            /// Every value, in the order of declaration.
            pub const ALL: [$label; [$($name),+].len()] = [$($label::$variant),+];

            /// Returns the name in metrics and logs.
            pub const fn name(self) -> &'static str {
                match self {
                    $($label::$variant => $name,)+
                }
            }
        }

        impl $crate::telemetry::metrics::label::Label for $label {
            const KEY: &'static str = $key;

            fn values() -> $crate::telemetry::metrics::LabelValues {
                let names = $label::ALL.iter().map(|value| value.name());
                $crate::telemetry::metrics::LabelValues::Fixed(names.collect())
            }

            fn value(&self) -> metrics::SharedString {
                metrics::SharedString::const_str(self.name())
            }
        }

        impl $crate::telemetry::metrics::label::LabelEnum for $label {
            const ALL: &'static [$label] = &$label::ALL;

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use label_enum;
