#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds dist/meshd_VERSION_ARCH.deb and dist/SHA256SUMS. The same commit, compiler and
# dpkg give the same bytes. From the environment:
#
#   VERSION            what packaging/version.sh prints unless set
#   ARCHS              Debian's names of architectures, this machine's unless set
#   DIST               where the packages go, dist unless set
#   SOURCE_DATE_EPOCH  the time in the package, that of the last commit unless set
set -euo pipefail
umask 022
here=$(dirname "$(realpath "$0")")
cd "$here/../.."
DIST=$(realpath -m "${DIST:-dist}")
VERSION=${VERSION:-$(packaging/version.sh)}
native=$(dpkg --print-architecture)
ARCHS=${ARCHS:-$native}
if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
fi
export SOURCE_DATE_EPOCH
stamp="-X main.version=$VERSION $(git log -1 --format='-X main.commit=%h -X main.date=%cs' 2>/dev/null || true)"
export LC_ALL=C TZ=UTC CGO_ENABLED=0 GOTOOLCHAIN=local

version=$VERSION-1
day=$(date -d "@$SOURCE_DATE_EPOCH" +%F)
maintainer='meshd maintainers <meshd@users.noreply.github.com>'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
doc=$work/common/usr/share/doc/meshd

# Builds $work/meshd-ARCH.
binary() {
	local -A goarch=([amd64]=amd64 [arm64]=arm64 [armhf]=arm)
	if [[ -z ${goarch[$1]:-} ]]; then
		echo "build: no package is made for architecture $1; set ARCHS to some of: amd64 arm64 armhf" >&2
		exit 2
	fi
	[[ -e $work/meshd-$1 ]] ||
		GOARCH=${goarch[$1]} GOARM=7 go build -trimpath -buildvcs=false -ldflags "-s -w $stamp" -o "$work/meshd-$1" ./cmd/meshd
}

# What is the same for every architecture. The commands' own texts come from the
# command, run here.
common() {
	local root=$work/common
	binary "$native"
	install -D -m 0644 packaging/meshd.yaml "$doc/examples/meshd.yaml"
	install -d -m 0700 "$root/etc/meshd"
	install -D -m 0644 -t "$root/usr/lib/systemd/system" packaging/systemd/*.service
	install -D -m 0644 -t "$root/usr/lib/systemd/network" packaging/systemd/*.network
	install -D -m 0644 packaging/systemd/meshd.sysusers "$root/usr/lib/sysusers.d/meshd.conf"
	install -D -m 0644 packaging/systemd/meshd.tmpfiles "$root/usr/lib/tmpfiles.d/meshd.conf"
	for k3s in k3s k3s-agent; do
		install -D -m 0644 packaging/systemd/k3s.conf "$root/usr/lib/systemd/system/$k3s.service.d/meshd.conf"
	done
	install -d "$root"/usr/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d,man/man5,man/man8,lintian/overrides} "$doc"
	"$work/meshd-$native" completion bash >"$root/usr/share/bash-completion/completions/meshd"
	"$work/meshd-$native" completion zsh >"$root/usr/share/zsh/vendor-completions/_meshd"
	"$work/meshd-$native" completion fish >"$root/usr/share/fish/vendor_completions.d/meshd.fish"
	"$work/meshd-$native" man --date "$day" | gzip -9n >"$root/usr/share/man/man8/meshd.8.gz"
	yaml_manual | gzip -9n >"$root/usr/share/man/man5/meshd.yaml.5.gz"
	install -m 0644 -t "$doc/examples" packaging/meshd-minimal.yaml packaging/monitoring/meshd-{rules.yaml,dashboard.json}
	install -m 0644 packaging/deb/copyright "$doc"
	gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
	changelog | gzip -9n >"$doc/changelog.Debian.gz"
	go run ./packaging/sbom -notices "$work/meshd-$native" | gzip -9n >"$doc/notices.gz"
	install -m 0644 packaging/deb/lintian-overrides "$root/usr/share/lintian/overrides/meshd"
}

# meshd.yaml(5) is the commented file itself.
yaml_manual() {
	cat <<-MAN
		.TH MESHD.YAML 5 "$day" "meshd $VERSION" "File formats"
		.SH NAME
		meshd.yaml \- configuration of meshd
		.SH DESCRIPTION
		.I /etc/meshd.yaml
		is read when
		.BR meshd (8)
		starts, and again when it is reloaded. Everything in it but
		.B secret\-file
		has a default. Keys that meshd does not know are errors, as are keys written
		twice and values of another kind: meshd reports all of them with their lines
		and does not start, or goes on with what it had. \fBmeshd check\fR looks at the file and the host without
		changing anything.
		.PP
		This is the whole file, with every key, its meaning and its default:
		.PP
		.nf
	MAN
	sed -e 's/\\/\\e/g; s/-/\\-/g; s/^/\\\&/' packaging/meshd.yaml
	cat <<-'MAN'
		.fi
		.SH FILES
		.I /usr/share/doc/meshd/examples/meshd.yaml,
		.I /usr/share/doc/meshd/examples/meshd\-minimal.yaml
		.SH SEE ALSO
		.BR meshd (8)
	MAN
}

# The sections of CHANGELOG.md as Debian writes them; the newest is this package.
changelog() {
	awk -v version="$version" -v by=" -- $maintainer  $(date -R -d "@$SOURCE_DATE_EPOCH")" '
		/^## / && entry++ { exit }
		/^## / { print "meshd (" version ") unstable; urgency=medium\n"; next }
		entry && /^- / { if (line) print line; line = "  *"; sub(/^- /, "") }
		entry {
			for (i = 1; i <= NF; i++) {
				if (length(line) + 1 + length($i) > 78) { print line; line = "   " }
				line = line " " $i
			}
		}
		END { print line "\n\n" by }' CHANGELOG.md
}

package() {
	local arch=$1 root=$work/$1
	binary "$arch"
	cp -a "$work/common" "$root"
	install -d "$root/usr/bin" "$root/DEBIAN"
	install -m 0755 "$work/meshd-$arch" "$root/usr/bin/meshd"
	install -m 0755 packaging/deb/{postinst,prerm,postrm} "$root/DEBIAN"
	(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
	sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@MAINTAINER@/$maintainer/" \
		-e "s/@SIZE@/$(du -k -s --apparent-size --exclude=DEBIAN "$root" | cut -f1)/" packaging/deb/control >"$root/DEBIAN/control"
	# One thread, because the compressed bytes must not depend on the machine.
	dpkg-deb --root-owner-group --threads-max=1 -Zxz --build "$root" "$DIST/meshd_${version}_$arch.deb" >/dev/null
	echo "$DIST/meshd_${version}_$arch.deb"
}

mkdir -p "$DIST"
common
for arch in $ARCHS; do package "$arch"; done
(cd "$DIST" && sha256sum ./*.deb | sed 's, \./, ,' >SHA256SUMS)
