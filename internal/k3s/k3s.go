// SPDX-License-Identifier: Apache-2.0

// Package k3s knows how k3s is configured. It writes the file that puts k3s on the
// mesh, and reads what k3s has been told, by whomever. A path below root stands for
// the same path of the host.
package k3s

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/mesh"
)

// DropIn is the file that meshd writes. k3s reads all files in that directory after
// its config.yaml, in the order of their names.
const DropIn = "/etc/rancher/k3s/config.yaml.d/10-meshd.yaml"

// Role is what k3s is on a host.
type Role string

// The roles. Where k3s is not installed yet, it is not known.
const (
	Unknown Role = ""
	Server  Role = "server"
	Agent   Role = "agent"
)

// units are those that k3s's installer makes.
var units = map[Role]string{
	Server: "/etc/systemd/system/k3s.service",
	Agent:  "/etc/systemd/system/k3s-agent.service",
}

// RoleOf says what k3s is installed as.
func RoleOf(root string) Role {
	for _, role := range []Role{Server, Agent} {
		if _, err := os.Stat(filepath.Join(root, units[role])); err == nil {
			return role
		}
	}
	return Unknown
}

// Wanted is what the file follows from.
type Wanted struct {
	Role    Role
	Overlay []netip.Addr // this node's, one a family
	Cluster mesh.Cluster
}

// fileMode is that of k3s's own configuration file.
const fileMode = 0o600

// mark begins a file of ours. Another one of that name is not touched.
const mark = "# Written by meshd"

// Render returns the file. An agent learns the cluster's settings from its server,
// and knows none of the keys.
func Render(w Wanted) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s, because k3s.write-config is true in /etc/meshd.yaml.\n", mark)
	fmt.Fprintln(&b, "# What is changed here is lost; files with higher names count more.")
	for _, s := range settings(w) {
		fmt.Fprintf(&b, "%s: %q\n", s.key, s.value)
	}
	return b.Bytes()
}

type setting struct{ key, value string }

// settings are those that follow from the mesh.
func settings(w Wanted) []setting {
	all := []setting{{"node-ip", join(w.Overlay)}}
	if w.Role != Server {
		return all
	}
	all = append(all,
		setting{"flannel-backend", "none"},
		setting{"advertise-address", w.Overlay[0].String()},
		setting{"bind-address", w.Overlay[0].String()},
		setting{"cluster-cidr", join(w.Cluster.Pods)},
		setting{"service-cidr", join(w.Cluster.Services)})
	if w.Cluster.DNS.Address.IsValid() {
		all = append(all, setting{"cluster-dns", w.Cluster.DNS.Address.String()})
	}
	return append(all,
		setting{"cluster-domain", w.Cluster.DNS.Domain},
		setting{"kube-proxy-arg+", "nodeport-addresses=primary"}) // beside what others say
}

func join[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = v.String()
	}
	return strings.Join(words, ",")
}

// errForeign says that somebody else's file has the name of ours.
var errForeign = errors.New("it was not written by meshd")

// Differs says whether the file is not as it should be. A file of somebody else's in
// its place is an error.
func Differs(root string, w Wanted) (bool, error) {
	old, err := os.ReadFile(filepath.Join(root, DropIn))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("read k3s's configuration: %w", err)
	case bytes.Equal(old, Render(w)):
		return false, nil
	case !bytes.HasPrefix(old, []byte(mark)):
		return false, fmt.Errorf("k3s's configuration %s is in the way: %w; give it another name", DropIn, errForeign)
	}
	return true, nil
}

// Write makes the file be as it should be, and says whether it was not.
func Write(root string, w Wanted) (changed bool, err error) {
	if differs, err := Differs(root, w); !differs {
		return false, err
	}
	path := filepath.Join(root, DropIn)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("write k3s's configuration: %w", err)
	}
	if err := atomicfile.Write(path, Render(w), fileMode); err != nil {
		return false, fmt.Errorf("write k3s's configuration: %w", err)
	}
	return true, nil
}

// Remove deletes the file if it is ours, and says whether it did.
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

// Value is what k3s has been told of a setting, and where.
type Value struct {
	Text string // several are separated by commas
	From string // the path of a file
}

// Settings are what k3s has been told.
type Settings struct {
	Role   Role
	Values map[string]Value
}

// With returns the settings as they will be with the file of ours.
func (s Settings) With(w Wanted) Settings {
	values := make(map[string]Value, len(s.Values))
	for key, v := range s.Values {
		values[key] = v
	}
	for _, set := range settings(w) {
		if old, ok := values[set.key]; !ok || precedes(old.From) {
			values[set.key] = Value{set.value, DropIn}
		}
	}
	return Settings{s.Role, values}
}

// precedes says whether what a file says counts less than what ours says.
func precedes(path string) bool {
	if filepath.Dir(path) != filepath.Dir(DropIn) {
		return !slices.Contains([]string{units[Server], units[Agent]}, path)
	}
	return path <= DropIn
}
