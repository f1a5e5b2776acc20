// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/meshd/meshd/internal/mesh"
)

// Write returns a configuration as the text of a file, without the keys that have their
// default. Keys whose text is not that of their value, such as wireguard.mtu, are refused by
// Parse afterwards or differ: whoever writes them must parse the text again.
func Write(c Config) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	d := Minimal()
	for _, k := range keys {
		value := k.get(&c)
		if reflect.DeepEqual(value, k.get(&d)) {
			continue
		}
		at := root
		parts := strings.Split(k.path, ".")
		for _, part := range parts[:len(parts)-1] {
			at = section(at, part)
		}
		node := &yaml.Node{}
		if err := node.Encode(texts(value)); err != nil {
			return nil, fmt.Errorf("write configuration: %s: %w", k.path, err)
		}
		node.Style = yaml.FlowStyle
		at.Content = append(at.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: parts[len(parts)-1]}, node)
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(root), e.Close()); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return b.Bytes(), nil
}

// Minimal returns the configuration of a file that has a secret-file only, which is not in it.
func Minimal() Config {
	c, err := Parse("", []byte("secret-file: "+secretExample))
	if err != nil {
		panic(err) // the defaults are wrong
	}
	c.SecretFile = ""
	return c
}

// section returns the mapping of a name, which it makes if it is not there.
func section(in *yaml.Node, name string) *yaml.Node {
	for i := 0; i < len(in.Content); i += 2 {
		if in.Content[i].Value == name {
			return in.Content[i+1]
		}
	}
	made := &yaml.Node{Kind: yaml.MappingNode}
	in.Content = append(in.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, made)
	return made
}

// texts returns a value as a file has it: lists of texts, and texts of what is not a number.
func texts(value any) any {
	switch value {
	case mesh.NoInternalIP():
		return "none"
	case netip.AddrPort{}: // nowhere
		return ""
	}
	if a, ok := value.(netip.AddrPort); ok && !a.Addr().IsValid() { // all addresses of the host
		return fmt.Sprintf(":%d", a.Port())
	}
	v := reflect.ValueOf(value)
	switch v.Kind() {
	case reflect.Slice:
		list := []any{}
		for i := range v.Len() {
			list = append(list, texts(v.Index(i).Interface()))
		}
		return list
	case reflect.Int, reflect.Uint64, reflect.Bool:
		return value
	}
	return fmt.Sprint(value)
}
