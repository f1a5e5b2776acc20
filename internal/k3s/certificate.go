// SPDX-License-Identifier: Apache-2.0

package k3s

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// Certificate is the serving certificate that a server of k3s keeps. The server asks itself at its
// bind-address when it starts, and does not come up if the certificate lacks that address.
type Certificate struct {
	Path      string // "" if there is none
	Addresses []netip.Addr
}

// ReadCertificate reads the certificate of the server that has these settings.
func ReadCertificate(root string, s Settings) (Certificate, error) {
	dataDir := s.Values["data-dir"].Text
	if dataDir == "" {
		dataDir = "/var/lib/rancher/k3s"
	}
	path := filepath.Join(dataDir, "server/tls/dynamic-cert.json")
	text, err := os.ReadFile(filepath.Join(root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return Certificate{}, nil
	}
	if err != nil {
		return Certificate{}, fmt.Errorf("read k3s's certificate: %w", err)
	}
	cert, err := parseSecret(text)
	if err != nil {
		return Certificate{}, fmt.Errorf("read k3s's certificate %s: %w", path, err)
	}
	c := Certificate{Path: path}
	for _, ip := range cert.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			c.Addresses = append(c.Addresses, a.Unmap())
		}
	}
	return c, nil
}

// parseSecret returns the certificate in a Secret of Kubernetes, of type kubernetes.io/tls.
func parseSecret(text []byte) (*x509.Certificate, error) {
	var secret struct {
		Data map[string][]byte `json:"data"`
	}
	if err := json.Unmarshal(text, &secret); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(secret.Data["tls.crt"])
	if block == nil {
		return nil, errors.New("it has no tls.crt in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}
