//! The right to call an operation, as a type of its parameters.
//!
//! The gate judges every request by the table of routes and leaves its verdict with the request. Each type here takes
//! that verdict, and only if it was reached by the type's own class: a handler mounted under a route of another class
//! gets nothing and answers 500. The types also put the security requirement into the API description.

use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaSecurityScheme, Registry};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};

use super::{Granted, Principal};
use crate::context::RequestContext;
use crate::problem::ApiError;
use crate::routes::Class;

const SCHEME: &str = "bearer";

fn register_scheme(registry: &mut Registry) {
    registry.create_security_scheme(
        SCHEME,
        MetaSecurityScheme {
            ty: "http",
            description: Some(
                "An admin, organisation or workspace token; the operation says which of them it takes.",
            ),
            name: None,
            key_in: None,
            scheme: Some("bearer"),
            bearer_format: None,
            flows: None,
            openid_connect_url: None,
        },
    );
}

fn take(request: &Request, class: Class) -> Result<Granted, poem::Error> {
    let context = RequestContext::of(request)?;
    context
        .granted()
        .filter(|granted| granted.class == class)
        .ok_or_else(|| {
            ApiError::internal("internal error", "a handler stands under another class").into()
        })
}

macro_rules! access {
    ($(#[$doc:meta])* $name:ident(Principal), $class:expr) => {
        $(#[$doc])*
        pub(crate) struct $name(
            /// Who is asking.
            pub(crate) Principal,
        );
        access!(@extract $name, $class, |granted: Granted| $name(granted.principal));
    };
    ($(#[$doc:meta])* $name:ident, $class:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;
        access!(@extract $name, $class, |_: Granted| $name);
    };
    (@extract $name:ident, $class:expr, $make:expr) => {
        impl<'a> ApiExtractor<'a> for $name {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                register_scheme(registry);
            }

            fn security_schemes() -> Vec<&'static str> {
                vec![SCHEME]
            }

            async fn from_request(
                request: &'a Request,
                _body: &mut RequestBody,
                _options: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                take(request, $class).map($make)
            }
        }
    };
}

access!(
    /// An operator.
    AdminAccess(Principal),
    Class::Admin
);
access!(
    /// The workspace of the path, or an operator.
    WorkspaceAccess(Principal),
    Class::Workspace
);
access!(
    /// The workspace of the path, one related to it, or an operator.
    RelatedAccess,
    Class::Related
);
access!(
    /// The workspace of the path, as long as anybody remembers its token, or an operator.
    StateAccess,
    Class::State
);
access!(
    /// The workspace of the path itself.
    OwnAccess,
    Class::Own
);
access!(
    /// A workspace that may own the job, or an operator.
    JobAccess(Principal),
    Class::Job
);
access!(
    /// A workspace that names itself, or an operator.
    CallerAccess,
    Class::Caller
);
access!(
    /// Whoever may send the workspace of the path a message.
    MessageAccess(Principal),
    Class::Message
);
access!(
    /// The admin, where test tokens are open.
    TestTokenAccess,
    Class::TestToken
);
access!(
    /// Whoever may listen.
    SocketAccess(Principal),
    Class::Socket
);

/// An agent, to be judged when the body has named its workspace.
pub(crate) struct RegistryAccess {
    /// The bearer as it was presented.
    pub(crate) bearer: Option<String>,
}

impl<'a> ApiExtractor<'a> for RegistryAccess {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        register_scheme(registry);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![SCHEME]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let matched = RequestContext::of(request)?.matched()?;
        if matched.route.class != Class::Registry {
            return Err(ApiError::internal(
                "internal error",
                "a handler stands under another class",
            )
            .into());
        }
        Ok(Self {
            bearer: super::bearer(request).map(str::to_owned),
        })
    }
}
