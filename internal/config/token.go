// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// Token is what a host needs to join a mesh. Whoever has it can join.
type Token struct {
	Secret  [secretSize]byte
	Join    []HostPort
	Cluster mesh.Cluster
	Trusted []mesh.ID // with mesh.TrustList
	// Server is an overlay address of the node that has made the token; invalid if it had none.
	Server netip.Addr
}

// TokenPrefix begins each token, so that people and programs that look for secrets know it.
const TokenPrefix = "meshd1."

// wireToken is a token in JSON, after a checksum.
type wireToken struct {
	Secret []byte     `json:"s"`
	Config string     `json:"c"` // the keys of the file that are not the host's own
	Server netip.Addr `json:"o"`
}

// checksumSize is enough to find a token that was cut or mistyped, in bytes.
const checksumSize = 4

func checksum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:checksumSize]
}

// Encode returns a token as a string without spaces.
func (t Token) Encode() (string, error) {
	c := Minimal()
	c.Join, c.Cluster, c.Trusted = t.Join, t.Cluster, t.Trusted
	text, err := Write(c)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(wireToken{t.Secret[:], string(text), t.Server})
	if err != nil {
		return "", fmt.Errorf("encode token: %w", err)
	}
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(append(checksum(b), b...)), nil
}

// ParseToken decodes a token. Its errors never contain it.
func ParseToken(s string) (Token, error) {
	fail := func(problem string) (Token, error) {
		return Token{}, errors.New("the token " + problem + "; copy all of what meshd token prints, in one piece")
	}
	encoded, ok := strings.CutPrefix(strings.Join(strings.Fields(s), ""), TokenPrefix)
	if !ok {
		return fail("does not begin with " + TokenPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || len(b) < checksumSize || string(checksum(b[checksumSize:])) != string(b[:checksumSize]) {
		return fail("is not complete")
	}
	var w wireToken
	if err := json.Unmarshal(b[checksumSize:], &w); err != nil || len(w.Secret) != secretSize {
		return fail("is of another version of meshd")
	}
	c, err := Parse("the token", []byte("secret-file: "+secretExample+"\n"+w.Config))
	if err != nil {
		return Token{}, fmt.Errorf("the token is of another version of meshd: %w", err)
	}
	return Token{[secretSize]byte(w.Secret), c.Join, c.Cluster, c.Trusted, w.Server}, nil
}
