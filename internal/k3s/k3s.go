// SPDX-License-Identifier: Apache-2.0

// Package k3s writes the configuration file that makes k3s use the mesh, and reads all of
// k3s's settings on a host, whoever has written them. Its functions take the root directory
// of the host's files.
package k3s

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/mesh"
)

// DropIn is the file that meshd writes. k3s reads all files in that directory after
// its config.yaml, in the order of their names.
const DropIn = "/etc/rancher/k3s/config.yaml.d/10-meshd.yaml"

// Role is the role of k3s on a host.
type Role string

// The roles.
const (
	Unknown Role = "" // k3s is not installed yet
	Server  Role = "server"
	Agent   Role = "agent"
)

// units are the unit files that k3s's installer writes.
var units = map[Role]string{
	Server: "/etc/systemd/system/k3s.service",
	Agent:  "/etc/systemd/system/k3s-agent.service",
}

// RoleOf returns the role in which k3s is installed.
func RoleOf(root string) Role {
	for _, role := range []Role{Server, Agent} {
		if _, err := os.Stat(filepath.Join(root, units[role])); err == nil {
			return role
		}
	}
	return Unknown
}

// Wanted is what the settings follow from.
type Wanted struct {
	Role    Role
	Overlay []netip.Addr // this node's addresses, one per family; empty while they are not known
	Zone    string       // the node's location; "" for none
	Etcd    mesh.EtcdTimings
	Cluster mesh.Cluster
}

// fileMode is the mode of k3s's own configuration file.
const fileMode = 0o600

// mark is how a file of ours begins. Any other file of that name is not changed.
const mark = "# Written by meshd"

// render returns the content of the file. For an agent it has only what is about this host: an
// agent gets the cluster's settings from its server, and does not know their keys.
func render(w Wanted) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s, because k3s.write-config is true in /etc/meshd.yaml.\n", mark)
	fmt.Fprintln(&b, "# What is changed here is lost; files with higher names count more.")
	for _, s := range settings(w) {
		if strings.HasSuffix(s.key, "+") {
			fmt.Fprintf(&b, "%s: [%s]\n", s.key, quoted(s.value))
		} else {
			fmt.Fprintf(&b, "%s: %q\n", s.key, s.value)
		}
	}
	return b.Bytes()
}

// quoted returns the values of a list as elements of a list in YAML.
func quoted(value string) string {
	values := strings.Split(value, ",")
	for i, v := range values {
		values[i] = strconv.Quote(v)
	}
	return strings.Join(values, ", ")
}

// setting is a key of k3s's configuration and its value. A key that ends in + adds to a list, so
// that what other files have in it stays; its values are separated by commas.
type setting struct{ key, value string }

// settings returns the settings that follow from the mesh.
func settings(w Wanted) []setting {
	var all []setting
	if len(w.Overlay) > 0 {
		all = append(all,
			setting{"node-ip", join(w.Overlay)},
			setting{"bind-address", w.Overlay[0].String()}, // else the kubelet's port is open on the underlay
			setting{"kube-proxy-arg+", "nodeport-addresses=primary"})
	}
	if w.Zone != "" {
		all = append(all, setting{"node-label+", zoneLabel + "=" + w.Zone})
	}
	if w.Role != Server {
		return all
	}
	if len(w.Overlay) > 0 {
		all = append(all, setting{"advertise-address", w.Overlay[0].String()})
	}
	all = append(all,
		setting{"flannel-backend", "none"},
		setting{"cluster-cidr", join(w.Cluster.Pods)},
		setting{"service-cidr", join(w.Cluster.Services)})
	if w.Cluster.DNS.Address.IsValid() {
		all = append(all, setting{"cluster-dns", w.Cluster.DNS.Address.String()})
	}
	all = append(all, setting{"cluster-domain", w.Cluster.DNS.Domain})
	if args := EtcdArgs(w.Etcd); args != nil {
		all = append(all, setting{"etcd-arg+", strings.Join(args, ",")})
	}
	return all
}

func join[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return strings.Join(texts, ",")
}

// ErrForeign means that a file that is not meshd's has the name of ours. It is not changed.
var ErrForeign = errors.New("it was not written by meshd")

// Differs reports whether the file is missing or has other content. A file that is not
// meshd's is an error.
func Differs(root string, w Wanted) (bool, error) {
	content, err := update(root, w)
	return content != nil, err
}

// Write writes the file if Differs, and reports whether it has.
func Write(root string, w Wanted) (changed bool, err error) {
	content, err := update(root, w)
	if content == nil {
		return false, err
	}
	path := filepath.Join(root, DropIn)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("write k3s's configuration: %w", err)
	}
	if err := atomicfile.Write(path, content, fileMode); err != nil {
		return false, fmt.Errorf("write k3s's configuration: %w", err)
	}
	return true, nil
}

// update returns what the file is to have; nil if it has that.
func update(root string, w Wanted) ([]byte, error) {
	old, err := os.ReadFile(filepath.Join(root, DropIn))
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read k3s's configuration: %w", err)
	case err == nil && !bytes.HasPrefix(old, []byte(mark)):
		return nil, fmt.Errorf("k3s's configuration %s exists already: %w; give it another name", DropIn, ErrForeign)
	}
	if w.Zone != "" && !mayLabel(root, old) {
		w.Zone = ""
	}
	if content := render(w); !bytes.Equal(old, content) {
		return content, nil
	}
	return nil, nil
}

// Remove deletes the file if it is ours, and reports whether it has.
func Remove(root string) (bool, error) {
	path := filepath.Join(root, DropIn)
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.HasPrefix(old, []byte(mark)) {
		return false, nil
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return false, fmt.Errorf("remove k3s's configuration: %w", err)
	}
	return true, nil
}

// Value is the value of a setting, and where it comes from.
type Value struct {
	Text string // several values are separated by commas
	From string // the path of the file that sets it, without +; "" if files only add to it
}

// Settings are the settings of k3s on a host.
type Settings struct {
	Role   Role
	Values map[string]Value
}

// With returns the settings as they will be once our file is written.
func (s Settings) With(w Wanted) Settings {
	with := Settings{s.Role, maps.Clone(s.Values)}
	if with.Values == nil {
		with.Values = make(map[string]Value)
	}
	for _, ours := range settings(w) {
		key, adds := strings.CutSuffix(ours.key, "+")
		old := s.Values[key]
		written := adds && old.Has(strings.Split(ours.value, ",")...)
		if !written && overridden(old.From) {
			with.set(ours.key, ours.value, DropIn)
		}
	}
	return with
}

// Has reports whether all these are among the values.
func (v Value) Has(values ...string) bool {
	all := strings.Split(v.Text, ",")
	return !slices.ContainsFunc(values, func(value string) bool { return !slices.Contains(all, value) })
}

// overridden reports whether our file counts more than the one that sets a value; "" if none does.
func overridden(path string) bool {
	if filepath.Dir(path) != filepath.Dir(DropIn) {
		return !slices.Contains([]string{units[Server], units[Agent]}, path)
	}
	return path <= DropIn
}
