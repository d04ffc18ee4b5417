//! Counters and gauges by the API of OpenTelemetry, and the context of traces.
//!
//! Call [`observe`] once for each verifier, after the application has set its meter provider.
//! Calls to the service carry the current context by the propagator that the application has set.
//! Their spans are those of `tracing`, which `tracing-opentelemetry` exports.

use std::sync::{Arc, Weak};

use opentelemetry::{
    Context, KeyValue, global,
    metrics::{AsyncInstrument, Meter},
    propagation::Injector,
};
use tonic::metadata::{MetadataKey, MetadataMap};

use crate::{
    Verifier,
    verifier::{Inner, Status},
};

/// Registers the metrics of a verifier with a meter, such as `opentelemetry::global::meter("shop")`.
/// They end with the verifier.
///
/// | metric | kind | unit | meaning |
/// |---|---|---|---|
/// | `countersign.client.checks` | counter | `{check}` | checks, by `mode` and `result` |
/// | `countersign.client.lease` | gauge | `s` | the time for which a local verifier can still answer |
/// | `countersign.client.watch.lag` | gauge | `s` | the time that the last renewal of the lease took |
/// | `countersign.client.watch.revocations` | gauge | `{revocation}` | revocations in the copy |
/// | `countersign.client.watch.connections` | counter | `{connection}` | streams that were begun |
/// | `countersign.client.watch.resets` | counter | `{reset}` | streams that began with everything anew |
pub fn observe(meter: &Meter, verifier: &Verifier) {
    let observed = Observed(Arc::downgrade(verifier.inner()));
    let it = observed.clone();
    let _ = meter
        .u64_observable_counter("countersign.client.checks")
        .with_unit("{check}")
        .with_description("Checks of tokens by their result")
        .with_callback(move |observer| it.checks(observer))
        .build();
    let seconds = |name, text, read: fn(&Status) -> f64| {
        let it = observed.clone();
        let gauge = meter.f64_observable_gauge(name).with_unit("s").with_description(text);
        let _ = gauge.with_callback(move |observer| it.observe(observer, read)).build();
    };
    seconds(
        "countersign.client.lease",
        "The time for which the verifier can still answer by itself",
        |status| status.lease.unwrap_or_default().min(LONGEST).as_secs_f64(),
    );
    seconds("countersign.client.watch.lag", "The time of the last renewal", |status| {
        status.lag.as_secs_f64()
    });
    let it = observed.clone();
    let _ = meter
        .u64_observable_gauge("countersign.client.watch.revocations")
        .with_unit("{revocation}")
        .with_description("Revocations in the copy of the verifier")
        .with_callback(move |observer| {
            it.observe(observer, |status| u64::try_from(status.revocations).unwrap_or(u64::MAX));
        })
        .build();
    let counter = |name, unit, text, read: fn(&Status) -> u64| {
        let it = observed.clone();
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(text);
        let _ = counter.with_callback(move |observer| it.observe(observer, read)).build();
    };
    counter(
        "countersign.client.watch.connections",
        "{connection}",
        "Streams, or fetches of keys, that were begun",
        |status| status.connections,
    );
    counter(
        "countersign.client.watch.resets",
        "{reset}",
        "Streams that began with everything anew",
        |status| status.resets,
    );
}

/// The value of the gauge for a lease that does not end.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(86_400);

/// A verifier that is observed as long as it is used.
#[derive(Clone)]
struct Observed(Weak<Inner>);

impl Observed {
    fn checks(&self, observer: &dyn AsyncInstrument<u64>) {
        let Some(verifier) = self.0.upgrade() else { return };
        let mode = KeyValue::new("mode", verifier.mode().as_str());
        for (result, count) in verifier.counts().filter(|(_, count)| *count > 0) {
            observer.observe(count, &[mode.clone(), KeyValue::new("result", result)]);
        }
    }

    fn observe<T>(&self, observer: &dyn AsyncInstrument<T>, read: impl Fn(&Status) -> T) {
        if let Some(verifier) = self.0.upgrade() {
            let mode = KeyValue::new("mode", verifier.mode().as_str());
            observer.observe(read(&verifier.status()), &[mode]);
        }
    }
}

/// Adds the current context to the metadata of a call.
pub(crate) fn inject_context(metadata: &mut MetadataMap) {
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&Context::current(), &mut Metadata(metadata));
    });
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fmt::Debug, sync::Mutex};

    use opentelemetry::{
        metrics::{
            AsyncInstrumentBuilder, Callback, InstrumentProvider, ObservableCounter,
            ObservableGauge,
        },
        propagation::{Extractor, TextMapPropagator, text_map_propagator::FieldIter},
    };

    use super::*;
    use crate::{Demands, testing::Authority};

    /// Keeps the callbacks of instruments by their names, and calls them.
    #[derive(Default)]
    struct Instruments {
        integers: Mutex<BTreeMap<String, Callback<u64>>>,
        floats: Mutex<BTreeMap<String, Callback<f64>>>,
    }

    macro_rules! keep {
        ($method:ident, $instrument:ident, $number:ty, $map:ident) => {
            fn $method(
                &self,
                builder: AsyncInstrumentBuilder<'_, $instrument<$number>, $number>,
            ) -> $instrument<$number> {
                let callback = builder.callbacks.into_iter().next().unwrap();
                self.$map.lock().unwrap().insert(builder.name.into_owned(), callback);
                $instrument::new()
            }
        };
    }

    impl InstrumentProvider for Instruments {
        keep!(u64_observable_counter, ObservableCounter, u64, integers);
        keep!(u64_observable_gauge, ObservableGauge, u64, integers);
        keep!(f64_observable_gauge, ObservableGauge, f64, floats);
    }

    /// What was observed, as text.
    #[derive(Default)]
    struct Observations(Mutex<Vec<String>>);

    impl<T: Debug> AsyncInstrument<T> for Observations {
        fn observe(&self, value: T, attributes: &[KeyValue]) {
            let attributes =
                attributes.iter().map(|attribute| format!("{}={}", attribute.key, attribute.value));
            let attributes: Vec<_> = attributes.collect();
            self.0.lock().unwrap().push(format!("{} {value:?}", attributes.join(",")));
        }
    }

    impl Instruments {
        fn read(&self) -> BTreeMap<String, Vec<String>> {
            let mut seen = BTreeMap::new();
            let mut add = |name: &str, observe: &dyn Fn(&Observations)| {
                let observations = Observations::default();
                observe(&observations);
                seen.insert(name.to_owned(), observations.0.into_inner().unwrap());
            };
            for (name, callback) in &*self.integers.lock().unwrap() {
                add(name, &|observations| callback(observations));
            }
            for (name, callback) in &*self.floats.lock().unwrap() {
                add(name, &|observations| callback(observations));
            }
            seen
        }
    }

    #[test]
    fn checks_are_counted_by_mode_and_result_as_long_as_the_verifier_lives() {
        let instruments = Arc::new(Instruments::default());
        let authority = Authority::new();
        let verifier = authority.verifier();
        observe(&Meter::new(instruments.clone()), &verifier);
        let token = authority.token("alice").issue();
        let check = |token: &str| drop(verifier.verify_locally(token, &Demands::new()));
        check(&token);
        check(&token);
        authority.revoke(&token);
        check(&token);
        authority.set_unavailable(true);
        check(&token);
        let seen = instruments.read();
        assert_eq!(
            seen["countersign.client.checks"],
            [
                "mode=testing,result=active 2",
                "mode=testing,result=revoked 1",
                "mode=testing,result=unknown 1",
            ]
        );
        assert_eq!(seen["countersign.client.watch.revocations"], ["mode=testing 1"]);
        assert_eq!(seen["countersign.client.lease"], ["mode=testing 0.0"]);
        assert_eq!(seen.len(), 6);
        drop((authority, verifier));
        assert!(instruments.read().values().all(Vec::is_empty));
    }

    #[derive(Debug)]
    struct Fixed;

    impl TextMapPropagator for Fixed {
        fn inject_context(&self, _: &Context, injector: &mut dyn Injector) {
            injector.set("traceparent", "the-parent".to_owned());
            injector.set("not ascii", "ignored".to_owned());
        }

        fn extract_with_context(&self, context: &Context, _: &dyn Extractor) -> Context {
            context.clone()
        }

        fn fields(&self) -> FieldIter<'_> {
            FieldIter::new(&[])
        }
    }

    #[test]
    fn calls_carry_the_context_by_the_propagator_of_the_application() {
        global::set_text_map_propagator(Fixed);
        let mut metadata = MetadataMap::new();
        inject_context(&mut metadata);
        assert_eq!(metadata.get("traceparent").unwrap(), "the-parent");
        assert_eq!(metadata.len(), 1);
    }
}
