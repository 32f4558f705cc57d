"""The tables of a settings file that belong together: models, tenants, public prompts, aliases."""

from __future__ import annotations

from dataclasses import replace

from scheduler.info import ServiceConfig

from .access import Grants
from .aliases import parse_aliases
from .config import parse_api_key
from .keys import keys_path, read_keys
from .model_tables import parse_models
from .public_prompts import parse_public
from .settings_file import SettingsFile
from .tenants import Offer, parse_tenants


def with_tables(
    main: ServiceConfig, file: SettingsFile | None, api_key: str | None
) -> tuple[ServiceConfig, Grants]:
    """What is served beside the ``main`` model and to whom; ``api_key`` is the one of the options.

    Tenants may use, and public prompts may name, what is configured. Raises ConfigError, with
    file and line.
    """
    digest = None if api_key is None else parse_api_key(api_key)
    if file is None:
        grants = Grants(api_key=digest)
        return replace(main, tenants=grants.everybody), grants
    with file.blamed():
        own = [name for name, _ in main.adapters]
        models = parse_models(file.values.get("models", {}), main.served_model_name, own)
        service = replace(main, models=models)
        offer: Offer = {m.name: [name for name, _ in m.adapters] for m in service.all_models}
        tenants = parse_tenants(file.values.get("tenants", {}), offer)
        public = parse_public(file.values.get("public", []), main, offer)
        aliases = parse_aliases(file.values.get("aliases", {}), offer)
    grants = Grants(tenants, read_keys(keys_path(file.path)), digest)
    service = replace(service, tenants=grants.everybody, public=public, aliases=aliases)
    return service, grants
