//! The endpoints of the API: what each is called, takes and answers. The server's routing, the client and the
//! OpenAPI document come from this list.

use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use crate::config::VmConfig;
use crate::event::EventRecord;
use crate::options::ProtectRequest;
use crate::status::Status;
use crate::vm::{Counters, Ping, VmInfo};

/// What every path starts with.
pub const BASE: &str = "/api/v1/";

/// How an endpoint is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// Asks, and changes nothing.
    Get,
    /// Has something done.
    Put,
}

/// The body of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    /// There is none.
    None,
    /// May be left out.
    Optional,
    /// Must be given.
    Required,
}

/// A type in JSON: its schema by reference, and the schemas that it needs.
pub(crate) type Named = fn(&mut Vec<(String, RefOr<Schema>)>) -> RefOr<Schema>;

fn named<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) -> RefOr<Schema> {
    T::schemas(schemas);
    schemas.push((T::name().into_owned(), T::schema()));
    RefOr::Ref(utoipa::openapi::Ref::from_schema_name(T::name()))
}

fn inline<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) -> RefOr<Schema> {
    T::schemas(schemas);
    T::schema()
}

fn list_of<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) -> RefOr<Schema> {
    let item = named::<T>(schemas);
    RefOr::T(utoipa::openapi::ArrayBuilder::new().items(item).build().into())
}

/// Declares the endpoints.
macro_rules! routes {
    ($( $(#[doc = $doc:literal])+ $route:ident = $method:ident $name:literal $body:ident $(($request:expr))? $(-> $answer:expr)?; )+) => {
        /// An endpoint.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Route {
            $( $(#[doc = $doc])+ $route, )+
        }

        impl Route {
            /// All of them.
            pub const ALL: &'static [Self] = &[$( Self::$route, )+];

            /// Its path after [`BASE`].
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$route => $name, )+
                }
            }

            /// How it is called.
            #[must_use]
            pub const fn method(self) -> Method {
                match self {
                    $( Self::$route => Method::$method, )+
                }
            }

            /// Whether its request has a body.
            #[must_use]
            pub const fn body(self) -> Body {
                match self {
                    $( Self::$route => Body::$body, )+
                }
            }

            pub(crate) const fn summary(self) -> &'static str {
                match self {
                    $( Self::$route => concat!($($doc),+), )+
                }
            }

            pub(crate) fn request(self) -> Option<Named> {
                match self {
                    $( Self::$route => [$($request as Named)?].first().copied(), )+
                }
            }

            pub(crate) fn answer(self) -> Option<Named> {
                match self {
                    $( Self::$route => [$($answer as Named)?].first().copied(), )+
                }
            }
        }
    };
}

routes! {
    /// Checks that the VMM is responding.
    VmmPing = Get "vmm.ping" None -> named::<Ping>;
    /// Shuts the VM down and ends the VMM.
    VmmShutdown = Put "vmm.shutdown" None;
    /// Configuration and state of the VM.
    VmInfo = Get "vm.info" None -> named::<VmInfo>;
    /// Counters of the VM's devices.
    VmCounters = Get "vm.counters" None -> inline::<Counters>;
    /// Creates a VM from its configuration, without booting it.
    VmCreate = Put "vm.create" Required (named::<VmConfig>);
    /// Boots the VM.
    VmBoot = Put "vm.boot" None;
    /// Shuts the VM down; keeps its configuration.
    VmShutdown = Put "vm.shutdown" None;
    /// Reboots the VM.
    VmReboot = Put "vm.reboot" None;
    /// Shuts the VM down and deletes its configuration.
    VmDelete = Put "vm.delete" None;
    /// Pauses the VM.
    VmPause = Put "vm.pause" None;
    /// Resumes the VM.
    VmResume = Put "vm.resume" None;
    /// Presses the VM's power button.
    VmPowerButton = Put "vm.power-button" None;
    /// Raises a non-maskable interrupt in the VM.
    VmNmi = Put "vm.nmi" None;
    /// The state of protection.
    FtStatus = Get "ft.status" None -> named::<Status>;
    /// The last events, oldest first.
    FtEvents = Get "ft.events" None -> list_of::<EventRecord>;
    /// Protects the VM, by one of the configured peers if no standby is named. Answered when a standby has
    /// accepted.
    FtProtect = Put "ft.protect" Optional (named::<ProtectRequest>);
    /// Ends protection; the VM continues here.
    FtStop = Put "ft.stop" None;
    /// Suspends protection; the standby keeps its copy.
    FtSuspend = Put "ft.suspend" None;
    /// Protects the VM again after `ft.suspend`.
    FtResume = Put "ft.resume" None;
    /// Moves the VM to its standby without data loss.
    FtSwitchover = Put "ft.switchover" None;
    /// Stops the VM as if this host had failed.
    FtTestFailover = Put "ft.test-failover" None;
}

impl Route {
    /// The endpoint with this path after [`BASE`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        // What the client library on crates.io asks for.
        let name = if name == "vmm.nmi" { "vm.nmi" } else { name };
        Self::ALL.iter().copied().find(|route| route.name() == name)
    }

    /// Its path.
    #[must_use]
    pub fn path(self) -> String {
        format!("{BASE}{}", self.name())
    }
}
