#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the Debian packages that labs and tests lack. Arguments are further
# commands to provide, beside what every lab uses.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
bin=$(realpath -m "$(dirname "$0")/../bin")
PATH=$PATH:$bin

# What a lab uses, and the package it comes in.
declare -A package=(
	[ip]=iproute2
	[ping]=iputils-ping
	[nft]=nftables
	[iptables]=iptables # the portmap plugin runs it
	[wg]=wireguard-tools
	[dnsmasq]=dnsmasq-base # the resolver of the demo's client
	[miniupnpd]=miniupnpd-nftables # homes' routers that map ports
	[/usr/lib/cni/bridge]=containernetworking-plugins
	[/etc/ssl/certs/ca-certificates.crt]=ca-certificates # for Go modules
	[gcc]='gcc libc6-dev' # for the race detector
	[dot]=graphviz # graphs are drawn, too
	[zbarimg]=zbar-tools # QR codes are read
	# What the kernel lab is made with, and the programs in it.
	[qemu-system-x86_64]=qemu-system-x86
	[depmod]=kmod
	[sysctl]=procps
	[awk]=mawk
	# What packages are made and tested with.
	[apt-ftparchive]=apt-utils
	[lintian]=lintian
	[gpg]='gpg gpg-agent'
	[man]=man-db
	[systemd-analyze]=systemd
	[qemu-aarch64]=qemu-user # starts the package of the other architecture
	[promtool]='' # unpacked below
	# What the image of the systemd machines is made with.
	[mmdebstrap]=mmdebstrap
	[mkfs.ext4]=e2fsprogs
	# What examples are checked with.
	[ansible-lint]=ansible-lint
	[cloud-init-schema.json]='' # unpacked below
	# What vagrant brings machines up with.
	[vagrant]='vagrant vagrant-libvirt'
	[libvirtd]='libvirt-daemon-system libvirt-daemon-driver-qemu'
	[virsh]=libvirt-clients
	[qemu-img]=qemu-utils
	[ssh]=openssh-client
)
wanted=(ip ping nft iptables wg /usr/lib/cni/bridge /etc/ssl/certs/ca-certificates.crt "$@")

if ! command -v go >/dev/null; then
	echo "setup: go is missing: install Go $(sed -n 's/^go //p' "$(dirname "$0")/../go.mod") or later from https://go.dev/dl" >&2
	exit 1
fi

missing=()
for what in "${wanted[@]}"; do
	if [[ $what == /* ]]; then
		[[ -e $what ]] || missing+=(${package[$what]})
	else
		command -v "$what" >/dev/null || missing+=(${package[$what]})
	fi
done

# Puts a file of a package into bin, without installing the package: prometheus would start a
# server, and cloud-init would set up the host anew.
unpack() (
	package=$1 file=$2 name=$3
	echo "setup: unpacking $name"
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	cd "$dir"
	download=(apt-get download -qq -o APT::Sandbox::User=root "$package")
	"${download[@]}" 2>/dev/null || { apt-get update -qq && "${download[@]}"; }
	dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x "./$file"
	mkdir -p "$bin"
	mv "$file" "$bin/$name"
)
for what in "$@"; do
	case $what in
	promtool) command -v promtool >/dev/null || unpack prometheus usr/bin/promtool promtool ;;
	cloud-init-schema.json) [[ -e $bin/$what ]] ||
		unpack cloud-init usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json "$what" ;;
	esac
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $EUID -ne 0 ]]; then
	echo "setup: as root, run: apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -qq -y --no-install-recommends "${missing[@]}")
# The lists of a fresh machine are empty, those of an old one may be outdated.
"${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
