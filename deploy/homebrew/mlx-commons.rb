# From a checkout, until there is a release to name here (see docs/service.md):
#   brew tap-new local/commons
#   cp deploy/homebrew/mlx-commons.rb "$(brew --repository local/commons)/Formula/"
#   HOMEBREW_MLX_COMMONS_GIT=$PWD brew install --HEAD local/commons/mlx-commons
class MlxCommons < Formula
  include Language::Python::Virtualenv

  desc "Model endpoint that a team and all its agents share"
  head "file://#{ENV.fetch("HOMEBREW_MLX_COMMONS_GIT", "")}", using: :git

  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "python@3.12"

  def install
    virtualenv_create(libexec, "python3.12", system_site_packages: false, without_pip: false)
    system libexec/"bin/python", "-m", "pip", "install", "--no-cache-dir", buildpath
    bin.install_symlink libexec/"bin/commons"
    (etc/"mlx-commons").mkpath
    (etc/"mlx-commons").install "deploy/launchd/settings.toml" => "commons.toml" unless (etc/"mlx-commons/commons.toml").exist?
  end

  service do
    run [opt_bin/"commons", "serve", "--config", etc/"mlx-commons/commons.toml",
         "--log-file", var/"log/mlx-commons.log"]
    keep_alive true
    process_type :interactive
    error_log_path var/"log/mlx-commons.launchd.log"
  end

  test do
    assert_match "mlx-commons", shell_output("#{bin}/commons --version")
    assert_match '"checks"', shell_output("#{bin}/commons doctor --json", 0)
  end
end
