"""What `dft:` may hold in an Axolotl YAML. Mixed into Axolotl's schema, which drops any key it does not know."""

from pydantic import BaseModel, ConfigDict, Field


class DFTConfig(BaseModel):
    """The keys under `dft:`. Only here are unknown keys refused: the rest of the YAML is Axolotl's."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = Field(default=True, description="false trains with the original loss, as if there were no plugin.")


class DFTArgs(BaseModel):
    """The one key that the plugin adds to Axolotl's config."""

    dft: DFTConfig | None = Field(default=None, description="Dynamic Fine-Tuning, arXiv:2508.05629.")
